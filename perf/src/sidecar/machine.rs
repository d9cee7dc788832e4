//! Process ids of the lab as the machine sees them.

use std::fs;
use std::path::Path;

/// The machine's number of the process that is `inner` to the lab whose pid 1 is `lab` to the machine.
pub(super) fn pid(lab: i32, inner: i32) -> Option<i32> {
    let namespace = |pid: &str| fs::read_link(Path::new("/proc").join(pid).join("ns/pid")).ok();
    let of_lab = namespace(&lab.to_string())?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        (innermost(&status) == Some(inner) && namespace(&name)? == of_lab).then(|| name.parse().ok())?
    })
}

/// The last number of the line `NSpid:`, which is the process's in the innermost namespace that it is in.
fn innermost(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_number_counts() {
        assert_eq!(innermost("Name:\tenvoy\nNSpid:\t4711\t23\n"), Some(23));
        assert_eq!(innermost("NSpid:\t4711\n"), Some(4711));
        assert_eq!(innermost("Name:\tenvoy\n"), None);
    }

    #[test]
    fn this_process_is_found_from_itself() {
        let own = std::process::id().cast_signed();
        let inner = innermost(&fs::read_to_string("/proc/self/status").unwrap()).unwrap();
        assert_eq!(pid(own, inner), Some(own));
    }
}
