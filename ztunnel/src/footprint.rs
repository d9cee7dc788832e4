//! What the process gives back to the machine: program text, and what a thread keeps of the heap.
//!
//! The start runs through much of the program once, and a page fault maps the fifteen pages around as well, so nearly all
//! of the text counts as ours though a fraction runs. From time to time the text is unmapped; the pages stay in the
//! kernel's page cache, and those that still run are mapped again by a minor fault each.
//!
//! The heap is the allocator's: what is free for a second goes back, see `malloc_conf` in `main.rs`. But each thread keeps
//! some of what it freed for its next use, which pins the pages around it. The thread that takes the control plane's word
//! in frees much at once and then rests, so it gives that up.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use aquifer_runtime::Cancel;
use tokio::sync::watch;

/// The first time, soon after the start.
const FIRST: Duration = Duration::from_secs(2);
/// From then on the time doubles up to this.
const AT_MOST: Duration = Duration::from_secs(10);

/// So long after a change there may be more of them.
const SETTLED: Duration = Duration::from_millis(500);

/// Empties this thread's cache of free memory soon after each change of what was published, until the drain. For the
/// thread that receives: the control runtime has one.
pub async fn give_back_cache(mut published: watch::Receiver<u64>, cancel: Cancel) {
    loop {
        tokio::select! {
            () = cancel.drained() => return,
            changed = published.changed() => if changed.is_err() { return },
        }
        tokio::select! {
            () = cancel.drained() => return,
            () = tokio::time::sleep(SETTLED) => published.mark_unchanged(),
        }
        flush_cache();
    }
}

#[cfg(feature = "jemalloc")]
#[allow(unsafe_code)]
fn flush_cache() {
    use std::ptr::null_mut;
    // SAFETY: "thread.tcache.flush" neither reads nor writes anything of ours; jemalloc(3). It fails where the thread has
    // no cache, which is as well.
    unsafe { tikv_jemalloc_sys::mallctl(c"thread.tcache.flush".as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
}

#[cfg(not(feature = "jemalloc"))]
fn flush_cache() {}

/// Unmaps program text from time to time, until the drain.
pub async fn give_back_text(cancel: Cancel) {
    let mut pause = FIRST;
    loop {
        tokio::select! {
            () = cancel.drained() => return,
            () = tokio::time::sleep(pause) => {}
        }
        unmap_text();
        pause = (pause * 2).min(AT_MOST);
    }
}

/// Unmaps what was loaded from files and can only be read or run, of the program and its libraries. Returns the bytes
/// of those ranges.
#[allow(unsafe_code)]
fn unmap_text() -> usize {
    let mut bytes = 0_usize;
    // SAFETY: the callback gets the pointer that is passed here, which lives until the call returns.
    unsafe { libc::dl_iterate_phdr(Some(each_object), (&raw mut bytes).cast()) };
    bytes
}

/// Segments that are not writable are never written: their pages are the file's, and come back from it unchanged.
/// (What the loader relocates lies in writable segments that it protects afterwards.)
#[allow(unsafe_code)]
unsafe extern "C" fn each_object(info: *mut libc::dl_phdr_info, _size: usize, bytes: *mut c_void) -> c_int {
    const PAGE: u64 = 4096;
    // SAFETY: the loader passes a valid object, whose headers live as long as it is loaded; `bytes` is `unmap_text`'s.
    let (info, bytes) = unsafe { (&*info, &mut *bytes.cast::<usize>()) };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: as above; dl_iterate_phdr(3).
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        let start = (info.dlpi_addr + header.p_vaddr).next_multiple_of(PAGE);
        let end = (info.dlpi_addr + header.p_vaddr + header.p_filesz) / PAGE * PAGE;
        if start >= end {
            continue;
        }
        let length = (end - start) as usize;
        // SAFETY: a range of a private file mapping that is never written, so dropping its pages loses nothing. Where the
        // kernel refuses (the vDSO, locked memory), nothing happens.
        if unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) } == 0 {
            *bytes += length;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of this program's own text that are mapped.
    fn resident_text() -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let own = std::env::current_exe().unwrap();
        let mut inside = false;
        let mut kib = 0;
        for line in maps.lines() {
            if let Some(mapping) = line.split_once(" r-xp ") {
                inside = mapping.1.ends_with(own.to_str().unwrap());
            } else if line.contains("-p ") {
                inside = false;
            } else if let (true, Some(rss)) = (inside, line.strip_prefix("Rss:")) {
                kib += rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
            }
        }
        kib << 10
    }

    #[test]
    fn text_is_unmapped_and_the_program_goes_on() {
        let text: String = (0..1000).map(|n| format!("{n:?}")).collect();
        let bytes = unmap_text();
        let left = resident_text();
        assert!(bytes > 1 << 20, "{bytes}");
        assert!(left < bytes, "{left} of {bytes}");
        // What ran before runs again, and constants are what they were.
        assert_eq!(text, (0..1000).map(|n| format!("{n:?}")).collect::<String>());
    }
}
