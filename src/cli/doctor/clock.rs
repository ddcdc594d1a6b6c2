//! The clock source: every turn reads the clock, so it must not cost a call into the kernel.

use super::Wanted;
use super::finding::Findings;
use super::host::Host;

const FOLDER: &str = "sys/devices/system/clocksource/clocksource0";

pub fn check(host: &Host, _: &Wanted<'_>, out: &mut Findings) {
    let Some(current) = host.text(&format!("{FOLDER}/current_clocksource")) else {
        return out.note(
            "clock source",
            "it is not known",
            "a clock that needs a call into the kernel slows every turn",
            "",
        );
    };
    let others = host.text(&format!("{FOLDER}/available_clocksource")).unwrap_or_default();
    let has_tsc = others.split_whitespace().any(|name| name == "tsc");
    let set = format!(
        "echo tsc > /{FOLDER}/current_clocksource, and clocksource=tsc tsc=reliable on the kernel's command line"
    );
    match current.as_str() {
        "tsc" | "arch_sys_counter" => out.ok("clock source", current),
        "kvm-clock" | "hyperv_clocksource_tsc_page" | "xen" => {
            let what = format!("{current}: the hypervisor's; read without a call into the kernel on most");
            let mend = if has_tsc { set } else { String::new() };
            out.note("clock source", what, "tsc is a little cheaper where the hypervisor keeps it stable", mend);
        }
        _ => {
            let what = format!("{current}, available: {others}");
            let why = "each reading is a call into the kernel and a slow device, several times a turn";
            let mend = if has_tsc {
                set
            } else {
                "the kernel has found tsc unstable (`dmesg | grep -i tsc`): update firmware, or use another host".into()
            };
            out.warning("clock source", what, why, mend);
        }
    }
}
