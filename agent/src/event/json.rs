//! Records as JSON that no terminal obeys.

use serde::Serialize;

/// Writes JSON in one line without any control character. The standard asks that of those below U+0020
/// only; a file name may also hold U+007F, and U+0080 to U+009F, which terminals obey as well.
///
/// # Errors
/// If the value cannot be written as JSON.
pub fn line(value: &impl Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string(value)?;
    if !text.contains(char::is_control) {
        return Ok(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        // Outside of strings there are none, so this is always within one.
        if character.is_control() {
            escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            escaped.push(character);
        }
    }
    Ok(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_terminals_obey_is_escaped_and_read_back() {
        let hostile = "/tmp/\u{1b}[2J\u{7f}\u{9b}31m \u{e4} \"\\";
        let written = line(&hostile).expect("a string");
        assert_eq!(written, r#""/tmp/\u001b[2J\u007f\u009b31m ä \"\\""#);
        assert_eq!(serde_json::from_str::<String>(&written).expect("JSON"), hostile);
    }
}
