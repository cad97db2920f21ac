//! USBGuard's rules as they are written (usbguard-rules.conf(5), version 1.1).

use thiserror::Error;

use crate::usb::rules::Pattern;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Lets devices in.
    Allow,
    /// Holds them.
    Block,
    /// Throws them off the bus.
    Reject,
}

/// How the values of a rule have to stand to those of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Each of the rule's is one of the device's.
    AllOf,
    /// At least one is.
    OneOf,
    /// None is.
    NoneOf,
    /// Each is, and there are as many.
    Equals,
    /// Likewise, and they stand in the same order.
    EqualsOrdered,
    /// Each of the device's is one of the rule's.
    MatchAll,
}

/// Values of an attribute; one alone is the same as a set of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set<T> {
    /// How they are compared.
    pub operator: Operator,
    /// At least one, as they stand.
    pub values: Vec<T>,
}

/// Vendor and product, of which any can be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    /// The maker's number.
    pub vendor: Option<u16>,
    /// The maker's number for the product.
    pub product: Option<u16>,
    /// Whether it has capital letters. USBGuard compares texts, and the kernel's has none.
    pub capitals: bool,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Line of its file.
    pub line: u32,
    /// What it does.
    pub target: Target,
    /// Vendor and product.
    pub id: Option<Set<Id>>,
    /// USBGuard's hash of the device.
    pub hash: Option<Set<Vec<u8>>>,
    /// USBGuard's hash of what it is plugged in at.
    pub parent_hash: Option<Set<Vec<u8>>>,
    /// What it calls itself.
    pub name: Option<Set<Vec<u8>>>,
    /// Its serial number.
    pub serial: Option<Set<Vec<u8>>>,
    /// Where it is plugged in.
    pub port: Option<Set<Vec<u8>>>,
    /// Its interfaces.
    pub interfaces: Option<Set<Pattern>>,
    /// What kind of socket it is at.
    pub connect: Option<Set<Vec<u8>>>,
    /// Conditions, as they are written.
    pub conditions: Option<Set<Vec<u8>>>,
    /// A note.
    pub label: Option<Set<Vec<u8>>>,
}

impl Written {
    /// A rule about every device.
    #[must_use]
    pub fn new(target: Target, line: u32) -> Self {
        Self {
            line,
            target,
            id: None,
            hash: None,
            parent_hash: None,
            name: None,
            serial: None,
            port: None,
            interfaces: None,
            connect: None,
            conditions: None,
            label: None,
        }
    }
}

/// What is wrong in a line. USBGuard does not start with it either.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {why}")]
pub struct Mistake {
    /// The line, from 1.
    pub line: u32,
    /// The byte in it, from 1.
    pub column: usize,
    /// What is wrong.
    pub why: String,
}

/// Reads the rules of a file, with every mistake that is in it.
///
/// # Errors
/// If there is any: a rule that cannot be read may be one that keeps devices out.
pub fn parse(text: &[u8]) -> Result<Vec<Written>, Vec<Mistake>> {
    let (mut rules, mut mistakes) = (Vec::new(), Vec::new());
    for (line, text) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let mut reader = Reader { text, at: 0 };
        match reader.line(line) {
            Ok(rule) => rules.extend(rule),
            Err(why) => mistakes.push(Mistake { line, column: reader.at + 1, why }),
        }
    }
    if mistakes.is_empty() { Ok(rules) } else { Err(mistakes) }
}

type Read<T> = Result<T, String>;

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn line(&mut self, line: u32) -> Read<Option<Written>> {
        self.blanks();
        if self.is_at_end() {
            return Ok(None);
        }
        let target = match self.word() {
            b"allow" => Target::Allow,
            b"block" => Target::Block,
            b"reject" => Target::Reject,
            other => {
                return Err(format!("{} is none of `allow`, `block`, `reject`", shown(other)));
            }
        };
        let mut rule = Written::new(target, line);
        let mut is_first = true;
        loop {
            let had_blanks = self.blanks();
            if self.is_at_end() {
                return Ok(Some(rule));
            }
            if !had_blanks {
                return Err("a blank is missing".into());
            }
            if is_first
                && self.peek().is_some_and(|byte| byte == b'*' || byte.is_ascii_hexdigit())
                && let Some(id) = self.id()
            {
                rule.id = Some(Set { operator: Operator::Equals, values: vec![id?] });
            } else {
                self.attribute(&mut rule)?;
            }
            is_first = false;
        }
    }

    fn attribute(&mut self, rule: &mut Written) -> Read<()> {
        let start = self.at;
        let name = self.word().to_vec();
        let texts = match &name[..] {
            b"id" => {
                let is_new = rule.id.is_none();
                rule.id = Some(self.set(|reader| {
                    reader.id().unwrap_or_else(|| Err("this is no `vendor:product`".into()))
                })?);
                return self.once(is_new, start, &name);
            }
            b"with-interface" => {
                let is_new = rule.interfaces.is_none();
                rule.interfaces = Some(self.set(Self::interface)?);
                return self.once(is_new, start, &name);
            }
            b"if" => {
                let is_new = rule.conditions.is_none();
                rule.conditions = Some(self.set(Self::condition)?);
                return self.once(is_new, start, &name);
            }
            b"hash" => &mut rule.hash,
            b"parent-hash" => &mut rule.parent_hash,
            b"name" => &mut rule.name,
            b"serial" => &mut rule.serial,
            b"via-port" => &mut rule.port,
            b"with-connect-type" => &mut rule.connect,
            b"label" => &mut rule.label,
            other => return Err(format!("there is no attribute {}", shown(other))),
        };
        let is_new = texts.is_none();
        *texts = Some(self.set(Self::string)?);
        self.once(is_new, start, &name)
    }

    fn once(&mut self, is_new: bool, start: usize, name: &[u8]) -> Read<()> {
        if is_new {
            return Ok(());
        }
        self.at = start;
        Err(format!("{} is said twice", shown(name)))
    }

    /// One value, or a set of them with an operator before it.
    fn set<T>(&mut self, value: fn(&mut Self) -> Read<T>) -> Read<Set<T>> {
        if !self.blanks() {
            return Err("a value is missing".into());
        }
        let start = self.at;
        let operator = match self.word() {
            b"all-of" => Operator::AllOf,
            b"one-of" => Operator::OneOf,
            b"none-of" => Operator::NoneOf,
            b"equals" => Operator::Equals,
            b"equals-ordered" => Operator::EqualsOrdered,
            b"match-all" => Operator::MatchAll,
            _ => {
                self.at = start;
                if self.peek() != Some(b'{') {
                    return Ok(Set { operator: Operator::Equals, values: vec![value(self)?] });
                }
                Operator::Equals
            }
        };
        self.blanks();
        if self.peek() != Some(b'{') {
            return Err("a `{` is missing".into());
        }
        self.at += 1;
        let mut values = Vec::new();
        loop {
            let had_blanks = self.blanks();
            if self.peek() == Some(b'}') && !values.is_empty() {
                self.at += 1;
                return Ok(Set { operator, values });
            }
            if !had_blanks && !values.is_empty() {
                return Err("a blank or a `}` is missing".into());
            }
            values.push(value(self)?);
        }
    }

    /// `1d6b:0002`, `1d6b:*`, `*:*`. None if it is something else, with nothing read.
    fn id(&mut self) -> Option<Read<Id>> {
        let start = self.at;
        let word = self.until(|byte| is_blank(byte) || matches!(byte, b'}' | b'#'));
        let part = |part: &[u8]| match part {
            b"*" => Some(None),
            hex if hex.len() == 4 => number(hex, 16).map(Some),
            _ => None,
        };
        let mut parts = word.split(|byte| *byte == b':');
        let read = (|| Some((part(parts.next()?)?, part(parts.next()?)?)))();
        let (Some((vendor, product)), None) = (read, parts.next()) else {
            self.at = start;
            return None;
        };
        if vendor.is_none() && product.is_some() {
            self.at = start;
            return Some(Err("a product of any vendor cannot be meant".into()));
        }
        let capitals = word.iter().any(u8::is_ascii_uppercase);
        Some(Ok(Id { vendor, product, capitals }))
    }

    /// `08:06:50`, `08:06:*`, `08:*:*`.
    fn interface(&mut self) -> Read<Pattern> {
        let start = self.at;
        let word = self.until(|byte| is_blank(byte) || matches!(byte, b'}' | b'#'));
        let pattern = std::str::from_utf8(word).ok().and_then(Pattern::parse);
        match pattern {
            Some(Pattern([Some(_), subclass, protocol]))
                if subclass.is_some() || protocol.is_none() =>
            {
                Ok(Pattern([pattern.and_then(|it| it.0[0]), subclass, protocol]))
            }
            _ => {
                self.at = start;
                Err("this is no kind of interface, as `08:06:50` or `03:*:*`".into())
            }
        }
    }

    /// Text in quotation marks. What is not plain in it is `\"`, `\\` or `\xHH`.
    fn string(&mut self) -> Read<Vec<u8>> {
        if self.peek() != Some(b'"') {
            return Err("a text in quotation marks is missing".into());
        }
        self.at += 1;
        let mut text = Vec::new();
        loop {
            let byte = self.next().ok_or("the text has no end")?;
            match byte {
                b'"' => return Ok(text),
                b'\\' => match self.next() {
                    Some(plain @ (b'"' | b'\\')) => text.push(plain),
                    Some(b'x') => {
                        let digits = self.text.get(self.at..self.at + 2).unwrap_or_default();
                        let value = number(digits, 16).filter(|_| digits.len() == 2);
                        text.push(value.ok_or("`\\x` needs two hexadecimal digits")?);
                        self.at += 2;
                    }
                    _ => return Err("in a text `\\` comes before `\"`, `\\` or `xHH` only".into()),
                },
                plain => text.push(plain),
            }
        }
    }

    /// `!allowed-matches(…)`, `localtime(08:00-17:00)`, `true`: kept as it is written.
    fn condition(&mut self) -> Read<Vec<u8>> {
        let start = self.at;
        if self.peek() == Some(b'!') {
            self.at += 1;
        }
        let name = self.until(|byte| !(byte.is_ascii_alphanumeric() || byte == b'-'));
        if name.is_empty() || name[0].is_ascii_digit() {
            return Err("a condition is missing".into());
        }
        if self.peek() == Some(b'(') {
            self.at += 1;
            loop {
                match self.next().ok_or("the condition has no `)`")? {
                    b')' => break,
                    b'\\' => drop(self.next()),
                    _ => {}
                }
            }
        }
        Ok(self.text[start..self.at].to_vec())
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn until(&mut self, ends: impl Fn(u8) -> bool) -> &[u8] {
        let start = self.at;
        while self.peek().is_some_and(|byte| !ends(byte)) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    fn word(&mut self) -> &[u8] {
        self.until(|byte| !(byte.is_ascii_alphanumeric() || byte == b'-'))
    }

    fn blanks(&mut self) -> bool {
        !self.until(|byte| !is_blank(byte)).is_empty()
    }

    /// A comment goes on to the end.
    fn is_at_end(&self) -> bool {
        self.peek().is_none_or(|byte| byte == b'#')
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn number<T: TryFrom<u32>>(digits: &[u8], radix: u32) -> Option<T> {
    let text = std::str::from_utf8(digits).ok()?;
    let is_good = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let value = is_good.then(|| u32::from_str_radix(text, radix).ok()).flatten()?;
    T::try_from(value).ok()
}

/// What stands there, for people.
fn shown(text: &[u8]) -> String {
    match text {
        [] => "this".into(),
        text => format!("`{}`", String::from_utf8_lossy(text).escape_debug()),
    }
}
