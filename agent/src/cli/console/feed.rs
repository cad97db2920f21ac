//! What the console shows: asked again and again in threads of its own, so that no key waits for it.

use std::{
    io::BufRead,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use serde_json::Value;

use super::records::Records;
use crate::{
    cli::status::{self, Page},
    control::{Request, UsbAnswer, client},
};

/// News that wait to be shown at most; more have the agent wait, which drops what it cannot send.
const WAITING: usize = 256;

/// How long until the agent is asked again for its records, if it has gone.
const AGAIN: Duration = Duration::from_secs(2);

/// What is known.
#[derive(Default)]
pub struct State {
    /// What the agent says that holds; none if it does not answer.
    pub page: Option<Page>,
    /// Why it does not.
    pub problem: Option<String>,
    /// USB devices, if they can be asked for.
    pub usb: Option<UsbAnswer>,
    /// What happened lately.
    pub records: Records,
}

impl State {
    /// What is known when asked once.
    pub fn now() -> Self {
        let mut state = Self::default();
        state.take(asked());
        if let Ok(lines) = client::ask(&Request::Events { follow: false, json: true }) {
            for line in lines.lines().map_while(Result::ok) {
                if let Ok(record) = serde_json::from_str(&line) {
                    state.records.add(&record);
                }
            }
        }
        state
    }

    fn take(&mut self, news: News) {
        match news {
            News::Holds(page, usb) => {
                (self.page, self.usb, self.problem) = (Some(*page), usb.map(|usb| *usb), None);
            }
            News::Silent(problem) => {
                (self.page, self.usb, self.problem) = (None, None, Some(problem));
            }
            // An agent tells all that it remembers to whoever asks anew.
            News::Anew => self.records = Records::default(),
            News::Record(record) => self.records.add(&record),
        }
    }
}

enum News {
    Holds(Box<Page>, Option<Box<UsbAnswer>>),
    Silent(String),
    Anew,
    Record(Box<Value>),
}

/// Who asks.
pub struct Feed(Receiver<News>);

impl Feed {
    /// Begins to ask.
    pub fn start(every: Duration) -> Self {
        let (sender, news) = sync_channel(WAITING);
        let records = sender.clone();
        thread::spawn(move || {
            while sender.send(asked()).is_ok() {
                thread::sleep(every);
            }
        });
        thread::spawn(move || {
            while follow(&records) {
                thread::sleep(AGAIN);
            }
        });
        Self(news)
    }

    /// Notes all news.
    pub fn take(&self, state: &mut State) {
        // Not more than are there now: a flood must not keep the page from being drawn.
        for news in self.0.try_iter().take(WAITING) {
            state.take(news);
        }
    }
}

fn asked() -> News {
    match status::ask() {
        Ok((_, page)) => {
            let usb = client::ask_json(&Request::Usb).ok();
            News::Holds(Box::new(page), usb.map(Box::new))
        }
        Err(failure) => News::Silent(format!("{:#}", failure.error)),
    }
}

/// Follows the agent's records until it ends; whether anybody still wants them.
fn follow(news: &SyncSender<News>) -> bool {
    let Ok(lines) = client::ask(&Request::Events { follow: true, json: true }) else { return true };
    if news.send(News::Anew).is_err() {
        return false;
    }
    for line in lines.lines().map_while(Result::ok) {
        if let Ok(record) = serde_json::from_str(&line)
            && news.send(News::Record(record)).is_err()
        {
            return false;
        }
    }
    true
}
