//! `aquifer lab status`: tables of what is there.

use std::net::IpAddr;

use aquifer_lab::Status;

/// The whole page.
pub(crate) fn render(status: &Status) -> String {
    let mut text = format!(
        "lab {}   up {} s   started in {:.2} s\n\n",
        status.name,
        status.uptime.as_secs(),
        status.start_took.as_secs_f64()
    );
    text.push_str(&table(
        ["NODE", "ADDRESSES"],
        status.nodes.iter().map(|node| [node.name.clone(), addresses(&node.ips)]),
    ));
    text.push('\n');
    let pods = status.pods.iter().map(|pod| {
        let state = if pod.terminating { "Terminating" } else { &pod.phase };
        [
            pod.namespace.clone(),
            pod.name.clone(),
            pod.node.clone(),
            state.to_owned(),
            yes_no(pod.ready),
            pod.restarts.to_string(),
            pod.redirection.clone().unwrap_or_else(|| "-".to_owned()),
            addresses(&pod.ips),
            pod.message.clone(),
        ]
    });
    text.push_str(&table(["NAMESPACE", "POD", "NODE", "STATE", "READY", "RESTARTS", "MESH", "ADDRESSES", ""], pods));
    if !status.components.is_empty() {
        text.push('\n');
        let components = status.components.iter().map(|component| {
            let pid = component.pid.map_or_else(|| "down".to_owned(), |pid| pid.to_string());
            [component.component.to_string(), pid, yes_no(component.ready), component.pod.clone()]
        });
        text.push_str(&table(["COMPONENT", "PID", "READY", "POD"], components));
    }
    text
}

fn addresses(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
}

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
    let widths: Vec<usize> =
        (0..N).map(|column| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("   ").trim_end())
    };
    all.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a".to_owned(), "1".to_owned()], ["long".to_owned(), String::new()]];
        assert_eq!(table(["X", "Y"], rows.into_iter()), "X      Y\na      1\nlong\n");
    }
}
