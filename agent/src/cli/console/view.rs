//! How the page looks: 80 columns and 24 lines are enough, and letters are all it needs, as not every
//! terminal at the end of a serial line has more.

use jiff::Timestamp;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, Wrap},
};

use super::{feed::State, records::Row};
use crate::{
    cli::status::{GateRow, Page},
    event::human::Plain,
    sinks::fields::Severity,
};

/// What a page is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// What one looks at first.
    Overview,
    /// What came to run.
    Runs,
    /// What was refused or went wrong.
    Refused,
    /// USB devices.
    Usb,
    /// Health, with what to do.
    Health,
    /// The policy, and what changed.
    Policy,
}

impl View {
    const ALL: [Self; 6] =
        [Self::Overview, Self::Runs, Self::Refused, Self::Usb, Self::Health, Self::Policy];

    const fn name(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Runs => "Runs",
            Self::Refused => "Refused",
            Self::Usb => "USB",
            Self::Health => "Health",
            Self::Policy => "Policy",
        }
    }
}

/// How far to go on a page, in lines.
#[derive(Clone, Copy, Debug)]
pub enum Wheel {
    /// To what stands below.
    Down(u16),
    /// To what stands above.
    Up(u16),
}

/// The page that is shown.
pub struct Screen {
    view: View,
    top: u16,
}

const GOOD: Style = Style::new().fg(Color::Green);
const ODD: Style = Style::new().fg(Color::Yellow).add_modifier(Modifier::BOLD);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
const BAR: Style = Style::new().add_modifier(Modifier::REVERSED);

impl Screen {
    /// Shows this.
    pub const fn new(view: View) -> Self {
        Self { view, top: 0 }
    }

    /// Shows the page with this number; there may be none.
    pub fn show_number(&mut self, digit: char) {
        let place =
            digit.to_digit(10).and_then(|digit| usize::try_from(digit).ok()?.checked_sub(1));
        if let Some(view) = place.and_then(|place| View::ALL.get(place)) {
            *self = Self::new(*view);
        }
    }

    /// Shows the next page.
    pub fn next(&mut self) {
        self.by(1);
    }

    /// Shows the page before.
    pub fn previous(&mut self) {
        self.by(View::ALL.len() - 1);
    }

    fn by(&mut self, steps: usize) {
        let here = View::ALL.iter().position(|view| *view == self.view).unwrap_or_default();
        *self = Self::new(View::ALL[(here + steps) % View::ALL.len()]);
    }

    /// Goes up or down.
    pub const fn turn(&mut self, wheel: Wheel) {
        self.top = match wheel {
            Wheel::Down(lines) => self.top.saturating_add(lines),
            Wheel::Up(lines) => self.top.saturating_sub(lines),
        };
    }

    /// Draws it.
    pub fn draw(&mut self, frame: &mut Frame<'_>, state: &State, now: Timestamp) {
        let rows =
            Layout::vertical([Constraint::Length(2), Constraint::Min(0), Constraint::Length(1)]);
        let [top, middle, bottom] = rows.areas(frame.area());
        frame.render_widget(Paragraph::new(heading(state, now, top.width)), top);
        let lines = match &state.page {
            None => silent(state),
            Some(page) => match self.view {
                View::Overview => overview(page, state, middle),
                View::Runs => {
                    rows_of(state.records.runs.iter(), "nothing has started since the agent did")
                }
                View::Refused => rows_of(state.records.alarms.iter(), "nothing was refused"),
                View::Usb => usb(state),
                View::Health => health(page),
                View::Policy => policy(page, state),
            },
        };
        let width = usize::from(middle.width.max(1));
        let length: usize = lines.iter().map(|line| line.width() / width + 1).sum();
        let body = Paragraph::new(lines);
        let body = if matches!(self.view, View::Overview) {
            body
        } else {
            body.wrap(Wrap { trim: false })
        };
        // Not beyond the last line, so that the next key up is seen.
        let last = u16::try_from(length).unwrap_or(u16::MAX);
        self.top = self.top.min(last.saturating_sub(middle.height));
        frame.render_widget(body.scroll((self.top, 0)), middle);
        frame.render_widget(Paragraph::new(self.footer(bottom.width)), bottom);
    }

    fn footer(&self, width: u16) -> Line<'static> {
        let mut spans = Vec::new();
        for (number, view) in View::ALL.iter().enumerate() {
            let style = if *view == self.view { BAR } else { Style::new() };
            spans.push(Span::styled(format!(" {} {} ", number + 1, view.name()), style));
        }
        let used: usize = spans.iter().map(Span::width).sum();
        let keys = "up/down  q quit ";
        let gap = usize::from(width).saturating_sub(used + keys.len());
        spans.push(Span::raw(format!("{:gap$}{keys}", "")));
        Line::from(spans)
    }
}

fn heading(state: &State, now: Timestamp, width: u16) -> Vec<Line<'static>> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let left = format!(" Portcullis on {}", Plain(&host));
    let right = format!("{} UTC ", now.strftime("%Y-%m-%d %H:%M:%S"));
    let gap = usize::from(width).saturating_sub(left.chars().count() + right.len());
    let bar = Line::styled(format!("{left}{:gap$}{right}", ""), BAR);
    let Some(page) = &state.page else {
        return vec![bar, Line::styled(" NO AGENT ANSWERS", BAD)];
    };
    let mode = match page.mode.as_str() {
        "enforce" => Span::styled(" ENFORCE: what is not listed is refused ", GOOD),
        "audit" => Span::styled(" AUDIT: nothing is refused ", ODD),
        other => Span::styled(format!(" {other} "), ODD),
    };
    let health = match page.health.as_str() {
        "ok" => Span::styled("health OK", GOOD),
        "warning" => Span::styled("health WARNING (5)", ODD),
        _ => Span::styled("health FAILED (5)", BAD),
    };
    let degraded =
        if page.degraded { format!("  DEGRADED to {}", page.backend) } else { String::new() };
    vec![bar, Line::from(vec![mode, Span::raw(" "), health, Span::styled(degraded, BAD)])]
}

fn silent(state: &State) -> Vec<Line<'static>> {
    let problem = state.problem.as_deref().unwrap_or("asking the agent");
    vec![Line::default(), Line::raw(format!(" {}", Plain(problem)))]
}

fn overview(page: &Page, state: &State, area: Rect) -> Vec<Line<'static>> {
    let mut lines = vec![
        Line::raw(format!(
            " policy {} v{}, {} digests{}",
            Plain(&page.policy.name),
            page.policy.version,
            page.digests,
            page.bundle.as_ref().map_or("", |_| ", signed")
        )),
        trial(page),
        Line::styled(
            " GATE         STANDS  STAYS    ALLOWED  WOULD REFUSE   REFUSED      LOST",
            HEAD,
        ),
    ];
    lines.extend(page.gates.iter().map(gate));
    lines.push(Line::default());
    lines.push(match &page.usb {
        None => Line::raw(" USB: the policy says nothing, so every device comes alive"),
        Some(usb) => {
            let style = if usb.held + usb.would_hold > 0 { ODD } else { Style::new() };
            let text = format!(
                " USB: {} in, {} held, {} would be held; {} attempts refused",
                usb.allowed, usb.held, usb.would_hold, usb.refused
            );
            Line::styled(text, style)
        }
    });
    let failing: Vec<_> =
        page.sinks.iter().filter(|sink| sink.failing).map(|sink| sink.name.as_str()).collect();
    lines.push(match failing.as_slice() {
        [] => Line::raw(format!(
            " records: {} so far, {} receivers, all well",
            page.events,
            page.sinks.len()
        )),
        failing => Line::styled(
            format!(" records: {} do not get through", Plain(&failing.join(", "))),
            BAD,
        ),
    });
    lines.push(Line::styled(" LAST REFUSED, OR WRONG (UTC)", HEAD));
    let left = usize::from(area.height).saturating_sub(lines.len());
    if state.records.alarms.is_empty() {
        lines.push(Line::raw(" nothing"));
    }
    lines.extend(state.records.alarms.iter().take(left).map(line_of));
    lines
}

fn trial(page: &Page) -> Line<'static> {
    match page.bundle.as_ref().and_then(|bundle| bundle.until) {
        Some(until) => Line::styled(
            format!(" ON TRIAL until {}, unless it is confirmed", until.strftime("%H:%M:%S")),
            ODD,
        ),
        None => Line::default(),
    }
}

fn gate(row: &GateRow) -> Line<'static> {
    let yes = |yes: bool| if yes { "yes" } else { "NO" };
    let count = |name: &str| row.counters.get(name).copied().unwrap_or_default();
    let (lost, is_whole) = (count("lost"), row.attached && row.pinned);
    let text = format!(
        " {:<12} {:<7} {:<5} {:>10} {:>13} {:>9} {:>9}",
        row.gate,
        yes(row.attached),
        yes(row.pinned),
        count("allowed"),
        count("would_deny"),
        count("denied"),
        lost
    );
    Line::styled(text, if !is_whole || lost > 0 { ODD } else { Style::new() })
}

fn line_of(row: &Row) -> Line<'static> {
    let style = match row.severity {
        Severity::Alert | Severity::Critical | Severity::Error => BAD,
        Severity::Warning => ODD,
        Severity::Notice | Severity::Info => Style::new(),
    };
    Line::from(vec![Span::raw(format!(" {} ", row.time)), Span::styled(row.text.clone(), style)])
}

fn rows_of<'a>(rows: impl Iterator<Item = &'a Row>, none: &str) -> Vec<Line<'static>> {
    let lines: Vec<_> = rows.map(line_of).collect();
    if lines.is_empty() { vec![Line::raw(format!(" {none}"))] } else { lines }
}

fn usb(state: &State) -> Vec<Line<'static>> {
    let Some(answer) = state.usb.as_ref().filter(|answer| answer.judged) else {
        return vec![Line::raw(" the policy says nothing about USB: every device comes alive")];
    };
    let mut lines = Vec::new();
    for change in &answer.devices {
        let (device, is_in) = (&change.device, change.state == "allowed");
        let head = format!(
            " {:<8} {:<12} {}  {} ({})",
            device.port,
            change.state.to_uppercase(),
            device.id,
            Plain(&device.name),
            device.kinds
        );
        lines.push(Line::styled(head, if is_in { GOOD } else { ODD }));
        lines.push(Line::raw(format!("          {}", Plain(&change.why()))));
        if !is_in {
            let what =
                format!("          to let it in once: portcullis usb allow-once {}", device.port);
            lines.push(Line::raw(what));
        }
    }
    if lines.is_empty() {
        lines.push(Line::raw(" no device is plugged in"));
    }
    lines
}

fn health(page: &Page) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let (good, bad): (Vec<_>, Vec<_>) = page.checks.iter().partition(|check| check.state == "ok");
    // What is to be done first, then what is well.
    for check in bad.into_iter().chain(good) {
        let (word, style) = match check.state.as_str() {
            "ok" => ("OK", GOOD),
            "failed" => ("FAILED", BAD),
            _ => ("WARNING", ODD),
        };
        lines.push(Line::from(vec![
            Span::styled(format!(" {word:<8}"), style),
            Span::raw(format!("{}: {}", check.title, Plain(&check.found))),
        ]));
        if let Some(mend) = &check.mend {
            lines.push(Line::raw(format!("         do: {}", Plain(mend))));
        }
    }
    lines
}

fn policy(page: &Page, state: &State) -> Vec<Line<'static>> {
    let mut lines = vec![Line::raw(format!(
        " {} v{}, {} digests",
        Plain(&page.policy.name),
        page.policy.version,
        page.digests
    ))];
    match &page.bundle {
        None => lines.push(Line::raw(" from the policy file of this device")),
        Some(bundle) => {
            lines.push(Line::raw(format!(
                " from the signed bundle {}, epoch {}",
                bundle.sha256.get(..12).unwrap_or(&bundle.sha256),
                bundle.epoch
            )));
            if bundle.until.is_some() {
                lines.push(trial(page));
                lines.push(Line::raw(" to keep it: portcullis policy confirm"));
            }
        }
    }
    for signer in &page.signers {
        lines.push(Line::raw(format!(" trusts signer {}", Plain(signer))));
    }
    for catalog in &page.catalogs {
        let text = format!(
            " catalog {} v{}: {} digests",
            Plain(&catalog.name),
            catalog.version,
            catalog.digests
        );
        lines.push(Line::raw(text));
    }
    for refused in &page.refused {
        let path = refused.path.display().to_string();
        let text = format!(" not in force: {}: {}", Plain(&path), Plain(&refused.message));
        lines.push(Line::styled(text, ODD));
    }
    lines.push(Line::default());
    lines.push(Line::styled(" LAST CHANGES (UTC)", HEAD));
    lines.extend(rows_of(state.records.changes.iter(), "none"));
    lines
}

#[cfg(test)]
mod tests;
