//! Runs inside the virtual machines: their first process, and the end-to-end scenarios.

mod agent;
mod attack;
mod bench;
mod console;
mod demo;
mod dm;
mod door;
mod elf;
mod events;
mod faults;
mod gadget;
mod init;
mod link;
mod mapping;
mod pki;
mod power;
mod raw;
mod ring;
mod scenarios;
mod tasks;
mod twofaced;
mod usbguard;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::first_process();
    }
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["run"] => init::run_and_finish(),
        ["bench", "exec"] => bench::exec(),
        ["bench", "start"] => bench::agent_start(),
        ["bench", "write"] => bench::write(),
        ["bench", "usb"] => bench::usb(),
        ["bench", "interpreter"] => bench::interpreter(),
        ["bench", "catalog"] => bench::catalog(),
        ["bench", "events"] => bench::events(),
        ["bench", "flood"] => bench::flood_alone(),
        ["bench", "cyclictest"] => bench::cyclictest(),
        ["bench", "realtime"] => bench::realtime(),
        ["bench", "churn"] => scenarios::million(),
        ["kill-pushes", count] => {
            count.parse().map_err(anyhow::Error::from).and_then(scenarios::kill_pushes)
        }
        ["switch-under-load", digests, switches] => switch_under_load(digests, switches),
        ["power-round", lowest, highest, then] => power_round(lowest, highest, *then == "end"),
        ["two-machines", "device"] => scenarios::two_machines::device(),
        ["two-machines", "operator"] => scenarios::two_machines::operator(),
        ["fork-bomb", seconds] => {
            seconds.parse().map_err(anyhow::Error::from).and_then(scenarios::fork_bomb)
        }
        ["network-cut", seconds, events, path] => network_cut(seconds, events, path),
        ["confined", port] => scenarios::confined::attacks(port),
        ["alone", name, how] => scenarios::read_apart::attack(name, *how == "alone"),
        ["answer"] => scenarios::answer(),
        ["start-refused", folder, seconds] => seconds
            .parse()
            .map_err(anyhow::Error::from)
            .and_then(|seconds| scenarios::start_refused(folder.as_ref(), seconds)),
        ["faults", seed, from, to] => return faults::main(seed, from, to),
        ["efi-mark"] => scenarios::efi_mark(),
        ["beside-usbguard"] => usbguard::beside(),
        ["demo"] => return demo::commissioning(),
        ["demo", "here"] => return demo::here(),
        // For the host: name and machine of every scenario, and on which kernels it runs by default.
        ["list"] => {
            for scenario in scenarios::ALL {
                let is_also_old = scenarios::ALSO_OLD.contains(&scenario.name);
                let kernels = if is_also_old { "all" } else { "usual" };
                println!("{}\t{}\t{kernels}", scenario.name, scenario.machine);
            }
            return ExitCode::SUCCESS;
        }
        // For the host too: a program that exits with a code.
        ["write-program", code, salt, path] => code
            .parse()
            .map_err(anyhow::Error::from)
            .and_then(|code| elf::program(code, salt.as_bytes()))
            .and_then(|content| attack::install(path.as_ref(), &content)),
        ["scenario", names @ ..] => return scenarios::run(names),
        // What scenarios start as children of their own.
        ["map-for-reading", path] => return exit(scenarios::map_for_reading(path.as_ref())),
        ["protect-for-reading", path] => {
            return exit(scenarios::protect_for_reading(path.as_ref()));
        }
        ["remap-for-reading", path] => return exit(scenarios::remap_for_reading(path.as_ref())),
        ["executable-memory", what] => return exit(scenarios::executable_memory(what)),
        _ => {
            eprintln!("portcullis-guest runs inside of virtual machines only");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn switch_under_load(digests: &str, switches: &str) -> anyhow::Result<()> {
    scenarios::many(digests.parse()?, switches.parse()?)
}

fn network_cut(seconds: &str, events: &str, path: &str) -> anyhow::Result<()> {
    scenarios::network_cut(seconds.parse()?, events.parse()?, path.parse()?)
}

fn power_round(lowest: &str, highest: &str, ends: bool) -> anyhow::Result<()> {
    power::round(lowest.parse()?, highest.parse()?, ends)
}

fn exit(code: anyhow::Result<u8>) -> ExitCode {
    code.map_or_else(
        |error| {
            println!("{error:#}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}
