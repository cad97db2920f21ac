//! Keys as they come over a slow line: the bytes of one may come apart.

use std::{io, time::Duration};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind};

/// How long the rest of a key may take. At 300 baud a byte takes 33 ms.
const REST: Duration = Duration::from_millis(150);

/// Waits so long for a key. None if none has come, or another thing has happened.
pub fn next(within: Duration) -> io::Result<Option<KeyEvent>> {
    let Some(key) = one(within)? else { return Ok(None) };
    if key.code != KeyCode::Esc {
        return Ok(Some(key));
    }
    let code = joined(|| Ok(one(REST)?.map(|key| key.code)))?;
    Ok(Some(KeyEvent { code, ..key }))
}

fn one(within: Duration) -> io::Result<Option<KeyEvent>> {
    if !event::poll(within)? {
        return Ok(None);
    }
    match event::read()? {
        Event::Key(key) if key.kind != KeyEventKind::Release => Ok(Some(key)),
        _ => Ok(None),
    }
}

/// What begins with an escape that came alone: the key itself, or one that sends more behind it.
fn joined(mut more: impl FnMut() -> io::Result<Option<KeyCode>>) -> io::Result<KeyCode> {
    match more()? {
        None => return Ok(KeyCode::Esc),
        Some(KeyCode::Char('[' | 'O')) => {}
        // Two escapes, or a letter with Alt: nothing that anybody means here.
        Some(_) => return Ok(KeyCode::Null),
    }
    let mut number = String::new();
    // The longest that terminals send have a few digits.
    for _ in 0..8 {
        match more()? {
            Some(KeyCode::Char(digit @ ('0'..='9' | ';'))) => number.push(digit),
            Some(KeyCode::Char(end)) => return Ok(meant(end, &number)),
            _ => break,
        }
    }
    Ok(KeyCode::Null)
}

fn meant(end: char, number: &str) -> KeyCode {
    match (end, number) {
        ('A', _) => KeyCode::Up,
        ('B', _) => KeyCode::Down,
        ('C', _) => KeyCode::Right,
        ('D', _) => KeyCode::Left,
        ('Z', _) => KeyCode::BackTab,
        ('H', _) | ('~', "1" | "7") => KeyCode::Home,
        ('~', "5") => KeyCode::PageUp,
        ('~', "6") => KeyCode::PageDown,
        _ => KeyCode::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_comes_apart_is_one_key() {
        for (rest, expected) in [
            ("", KeyCode::Esc),
            ("[A", KeyCode::Up),
            ("OB", KeyCode::Down),
            ("[5~", KeyCode::PageUp),
            ("[1;5C", KeyCode::Right),
            ("[", KeyCode::Null),
            ("[12345678901A", KeyCode::Null),
            ("x", KeyCode::Null),
        ] {
            let mut rest = rest.chars().map(KeyCode::Char);
            assert_eq!(joined(|| Ok(rest.next())).expect("read"), expected);
        }
    }
}
