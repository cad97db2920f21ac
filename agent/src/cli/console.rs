//! `portcullis console`: a page that shows what goes on, at a terminal or over a serial line.

mod feed;
mod keys;
mod records;
mod view;

use std::{
    io::{self, IsTerminal, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::anyhow;
use jiff::Timestamp;
use ratatui::{
    Terminal, TerminalOptions, Viewport,
    backend::{CrosstermBackend, TestBackend},
    buffer::Buffer,
    crossterm::{
        cursor::Show,
        event::{KeyCode, KeyModifiers},
        execute,
        terminal::{
            Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
            enable_raw_mode,
        },
    },
    layout::Rect,
};
use rustix::termios::tcgetwinsize;

use super::{BAD_INPUT, Failure, OrExit, Outcome, UNAVAILABLE, output};
use feed::{Feed, State};
use view::{Screen, View, Wheel};

#[derive(clap::Args)]
pub struct Args {
    /// Ask the agent every so many seconds
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    /// Print one page as plain text, and end
    #[arg(long)]
    once: bool,
}

/// What a terminal has that does not say how large it is, as those at the end of a serial line.
const USUAL: Rect = Rect { x: 0, y: 0, width: 80, height: 24 };

/// How long a key waits at most.
const TICK: Duration = Duration::from_millis(200);

pub fn console(args: &Args) -> Outcome {
    if args.once {
        return once();
    }
    if !stdout().is_terminal() || !io::stdin().is_terminal() {
        let error = anyhow!("this is no terminal; `portcullis console --once` prints one page");
        return Err(Failure { code: BAD_INPUT, error });
    }
    let feed = Feed::start(Duration::from_secs(args.every));
    let mut taken = Taken::take().or_exit(UNAVAILABLE)?;
    let shown = taken.show(&feed);
    drop(taken);
    shown.or_exit(UNAVAILABLE)?;
    Ok(ExitCode::SUCCESS)
}

fn once() -> Outcome {
    let state = State::now();
    let mut screen = Screen::new(View::Overview);
    let mut page =
        Terminal::new(TestBackend::new(USUAL.width, USUAL.height)).or_exit(UNAVAILABLE)?;
    let drawn =
        page.draw(|frame| screen.draw(frame, &state, Timestamp::now())).or_exit(UNAVAILABLE)?;
    output::print(&text_of(drawn.buffer))?;
    Ok(if state.page.is_some() { ExitCode::SUCCESS } else { ExitCode::from(UNAVAILABLE) })
}

/// What stands on a page, without what follows the last character of each line.
fn text_of(buffer: &Buffer) -> String {
    let mut text = String::new();
    for row in buffer.content.chunks(usize::from(buffer.area.width).max(1)) {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The terminal while the page is on it. Gives it back as it was.
struct Taken(Terminal<CrosstermBackend<io::Stdout>>);

impl Taken {
    fn take() -> io::Result<Self> {
        // From here on whatever goes wrong gives the terminal back.
        enable_raw_mode()?;
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
        }));
        match execute!(stdout(), EnterAlternateScreen).and_then(|()| empty()) {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    fn show(&mut self, feed: &Feed) -> io::Result<()> {
        let (mut state, mut screen) = (State::default(), Screen::new(View::Overview));
        loop {
            feed.take(&mut state);
            self.0.draw(|frame| screen.draw(frame, &state, Timestamp::now()))?;
            if let Some(key) = keys::next(TICK)? {
                let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL)
                    && matches!(key.code, KeyCode::Char('c' | 'd'));
                match key.code {
                    _ if is_interrupt => return Ok(()),
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    // What a line's noise has done to the page is mended.
                    KeyCode::Char('l') => self.0 = empty()?,
                    KeyCode::Char(digit @ '1'..='9') => screen.show_number(digit),
                    KeyCode::Tab | KeyCode::Right => screen.next(),
                    KeyCode::BackTab | KeyCode::Left => screen.previous(),
                    KeyCode::Down | KeyCode::Char('j') => screen.turn(Wheel::Down(1)),
                    KeyCode::Up | KeyCode::Char('k') => screen.turn(Wheel::Up(1)),
                    KeyCode::PageDown | KeyCode::Char(' ') => screen.turn(Wheel::Down(10)),
                    KeyCode::PageUp => screen.turn(Wheel::Up(10)),
                    KeyCode::Home => screen.turn(Wheel::Up(u16::MAX)),
                    _ => {}
                }
            }
        }
    }
}

/// An empty page. The library's own way to clear one asks the terminal where its cursor is, and not every
/// terminal answers.
fn empty() -> io::Result<Terminal<CrosstermBackend<io::Stdout>>> {
    execute!(stdout(), Clear(ClearType::All))?;
    let viewport = match tcgetwinsize(stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Viewport::Fullscreen,
        _ => Viewport::Fixed(USUAL),
    };
    Terminal::with_options(CrosstermBackend::new(stdout()), TerminalOptions { viewport })
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}
