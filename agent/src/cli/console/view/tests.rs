use ratatui::{Terminal, backend::TestBackend};
use serde_json::{Value, json};

use super::*;
use crate::cli::console::text_of;

fn state() -> State {
    let gate = |name: &str, denied: u64| {
        json!({
            "gate": name, "attached": true, "pinned": true,
            "allowed": 12_345, "would_deny": 0, "denied": denied, "lost": 0,
        })
    };
    let page = json!({
        "pid": 200, "version": "0.1.0", "started": "2026-11-27T07:00:00Z", "backend": "bpf-lsm",
        "degraded": false, "mode": "enforce", "digests": 1234, "health": "warning", "events": 99,
        "policy": { "name": "pump", "version": 7, "generation": 2 },
        "checks": [
            { "title": "kernel type information", "state": "ok", "found": "there", "mend": null },
            {
                "title": "lockdown", "state": "warning", "found": "none",
                "mend": "lockdown=integrity on the command line of the kernel, which is so long that it \
                         does not fit into one line of 80",
            },
        ],
        "gates": [gate("exec", 3), gate("mapping", 0), gate("memory", 0), gate("kernel", 0),
                  gate("device", 0), gate("shield", 0), gate("usb", 0)],
        "sinks": [], "reappraisal": null,
    });
    let mut state =
        State { page: Some(serde_json::from_value(page).expect("a page")), ..State::default() };
    for number in 0..300 {
        state.records.add(&decision("deny", &format!("/tmp/evil-{number}")));
    }
    state
}

fn decision(outcome: &str, path: &str) -> Value {
    json!({
        "type": "decision", "time": "2026-11-27T07:30:12.5Z", "outcome": outcome, "gate": "exec",
        "reason": "unlisted", "artifact": { "path": path },
        "process": { "pid": 812, "uid": 0, "comm": "sh" },
    })
}

fn shown(screen: &mut Screen, state: &State) -> String {
    let now = "2026-11-27T07:31:00Z".parse().expect("a time");
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("in memory");
    text_of(terminal.draw(|frame| screen.draw(frame, state, now)).expect("in memory").buffer)
}

#[test]
fn one_page_says_what_matters() {
    let text = shown(&mut Screen::new(View::Overview), &state());
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 24, "{text}");
    assert!(lines[0].ends_with("2026-11-27 07:31:00 UTC"), "{text}");
    for wanted in [
        " ENFORCE: what is not listed is refused  health WARNING (5)",
        " policy pump v7, 1234 digests",
        " exec         yes     yes        12345             0         3         0",
        " USB: the policy says nothing, so every device comes alive",
        " 07:30:12 REFUSED /tmp/evil-299 (unlisted), exec by sh, pid 812, uid 0",
    ] {
        assert!(lines.contains(&wanted), "{wanted:?} is not in\n{text}");
    }
    assert!(lines[23].starts_with(" 1 Overview  2 Runs  3 Refused"), "{text}");
    assert!(lines[23].ends_with("q quit"), "{text}");
}

#[test]
fn pages_are_turned_and_end() {
    let (state, mut screen) = (state(), Screen::new(View::Overview));
    screen.show_number('3');
    assert!(shown(&mut screen, &state).contains("evil-299"));
    screen.turn(Wheel::Down(u16::MAX));
    let end = shown(&mut screen, &state);
    // Two hundred are remembered.
    assert!(end.contains("evil-100 ") && !end.contains("evil-299"), "{end}");
    screen.turn(Wheel::Up(1));
    assert_ne!(shown(&mut screen, &state), end, "one line up is seen at once");
    screen.next();
    assert!(shown(&mut screen, &state).contains("says nothing about USB"));
    screen.show_number('9');
    screen.previous();
    screen.previous();
    let runs = shown(&mut screen, &state);
    assert!(runs.contains("nothing has started since the agent did"), "{runs}");
}

#[test]
fn health_begins_with_what_is_to_be_done() {
    let text = shown(&mut Screen::new(View::Health), &state());
    let warning = text.find(" WARNING lockdown: none").expect("the warning");
    let good = text.find(" OK      kernel type information: there").expect("what is well");
    assert!(warning < good, "{text}");
    assert!(text.contains("one line of 80"), "what is long is not cut off: {text}");
}

#[test]
fn a_hostile_name_steers_no_terminal() {
    let mut state = state();
    state.records.add(&decision("deny", "/tmp/\u{1b}[2J\u{7}\nhealth OK"));
    let text = shown(&mut Screen::new(View::Refused), &state);
    assert!(!text.chars().any(|character| character.is_control() && character != '\n'), "{text:?}");
    assert_eq!(text.lines().count(), 24);
}

#[test]
fn an_agent_that_is_silent_is_seen() {
    let problem = Some("no agent runs, but the gates that it left are in force".to_owned());
    let text = shown(&mut Screen::new(View::Usb), &State { problem, ..State::default() });
    assert!(text.contains("NO AGENT ANSWERS"), "{text}");
    assert!(text.contains("gates that it left are in force"), "{text}");
}
