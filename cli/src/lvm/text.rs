//! The text of LVM's metadata: `key = value` and `name { … }`, with values that are numbers, texts, and
//! lists of these; a `#` begins a comment.
//!
//! What is read may be anything: limits on depth and size, and no panic.

use std::collections::BTreeMap;

/// Sections in sections; LVM's own are three deep.
const MAX_DEPTH: usize = 16;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number.
    Number(i64),
    /// A text.
    Text(String),
    /// A list of values.
    List(Vec<Value>),
}

impl Value {
    /// As a number that is not negative.
    pub fn number(&self) -> Option<u64> {
        match self {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// As a text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// As a list.
    pub fn list(&self) -> Option<&[Value]> {
        match self {
            Value::List(list) => Some(list),
            _ => None,
        }
    }
}

/// A section: its values and the sections in it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Section {
    /// By key.
    pub values: BTreeMap<String, Value>,
    /// By name.
    pub sections: BTreeMap<String, Section>,
}

/// Not of that form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct TextError {
    /// Where, from 1 on.
    pub line: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// Reads a text.
pub fn parse(text: &str) -> Result<Section, TextError> {
    let mut parser = Parser {
        rest: text,
        line: 1,
    };
    let section = parser.section(0)?;
    match parser.rest.is_empty() {
        true => Ok(section),
        false => Err(parser.wrong("a closing brace without a section")),
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Parser<'a> {
    fn wrong(&self, what: &'static str) -> TextError {
        TextError {
            line: self.line,
            what,
        }
    }

    /// Passes so many bytes, which end between characters.
    fn pass(&mut self, bytes: usize) -> &'a str {
        let (passed, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.line += passed.bytes().filter(|byte| *byte == b'\n').count();
        self.rest = rest;
        passed
    }

    /// Passes characters as long as they are of a kind.
    fn pass_while(&mut self, of_kind: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c: char| !of_kind(c));
        self.pass(end.unwrap_or(self.rest.len()))
    }

    /// Passes spaces and comments.
    fn pass_space(&mut self) {
        loop {
            self.pass_while(char::is_whitespace);
            if !self.rest.starts_with('#') {
                return;
            }
            self.pass_while(|c| c != '\n');
        }
    }

    fn take(&mut self, word: char) -> bool {
        let found = self.rest.starts_with(word);
        if found {
            self.pass(word.len_utf8());
        }
        found
    }

    /// What is in a section, up to its closing brace or the end of all.
    fn section(&mut self, depth: usize) -> Result<Section, TextError> {
        let mut section = Section::default();
        loop {
            self.pass_space();
            if self.rest.is_empty() || self.rest.starts_with('}') {
                return Ok(section);
            }
            let key = self.key()?;
            self.pass_space();
            if self.take('=') {
                self.pass_space();
                let value = self.value(depth)?;
                if section.values.insert(key, value).is_some() {
                    return Err(self.wrong("a key that was there before"));
                }
            } else if self.take('{') {
                if depth >= MAX_DEPTH {
                    return Err(self.wrong("sections in sections, too deep"));
                }
                let inner = self.section(depth + 1)?;
                if !self.take('}') {
                    return Err(self.wrong("a section without an end"));
                }
                if section.sections.insert(key, inner).is_some() {
                    return Err(self.wrong("a section that was there before"));
                }
            } else {
                return Err(self.wrong("neither '=' nor '{' behind a name"));
            }
        }
    }

    fn key(&mut self) -> Result<String, TextError> {
        if self.rest.starts_with('"') {
            return self.text();
        }
        let key = self.pass_while(|c| c.is_ascii_alphanumeric() || "_-.+/@".contains(c));
        match key.is_empty() {
            true => Err(self.wrong("no name where one should be")),
            false => Ok(key.to_owned()),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, TextError> {
        if self.rest.starts_with('"') {
            return Ok(Value::Text(self.text()?));
        }
        if self.take('[') {
            if depth >= MAX_DEPTH {
                return Err(self.wrong("lists in lists, too deep"));
            }
            return self.list(depth + 1);
        }
        let word = self.pass_while(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        let number = word
            .parse()
            .map_err(|_| self.wrong("neither number, text nor list"))?;
        Ok(Value::Number(number))
    }

    fn list(&mut self, depth: usize) -> Result<Value, TextError> {
        let mut list = Vec::new();
        loop {
            self.pass_space();
            if self.take(']') {
                return Ok(Value::List(list));
            }
            list.push(self.value(depth)?);
            self.pass_space();
            if !self.take(',') && !self.rest.starts_with(']') {
                return Err(self.wrong("a list without an end"));
            }
        }
    }

    /// A text in quotes; a backslash takes the next character as it is.
    fn text(&mut self) -> Result<String, TextError> {
        let mut text = String::new();
        let mut escaped = false;
        for (at, c) in self.rest.char_indices().skip(1) {
            match c {
                c if escaped => {
                    text.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    self.pass(at + 1);
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
        Err(self.wrong("a text without an end"))
    }
}
