//! A small lexer: as much of Rust's grammar as it takes to tell code from comments and literals.
//!
//! Invariants
//! - A line has a token exactly if it has code on it, so that lines can be counted by tokens.
//! - Any text is cut into tokens without a panic; what is left open ends with the text.

/// A word, `::`, or another single character, and where it stands. A literal becomes `""`.
#[derive(Clone, Debug)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

/// All tokens of `text`; white space and comments are none.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let (kind, length) = lexeme(rest, first);
        let text = match kind {
            Kind::Skipped => None,
            Kind::Code => Some(&rest[..length]),
            Kind::Literal => Some("\"\""),
        };
        tokens.extend(text.map(|text| Token { text: text.into(), line }));
        let newlines = rest[..length].matches('\n').count();
        // A literal over several lines is code on each of them.
        let more = if matches!(kind, Kind::Literal) { newlines } else { 0 };
        tokens.extend((1..=more).map(|n| Token { text: "\"\"".into(), line: line + n }));
        line += newlines;
        rest = &rest[length..];
    }
    tokens
}

enum Kind {
    Skipped,
    Code,
    Literal,
}

fn lexeme(rest: &str, first: char) -> (Kind, usize) {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    if first.is_whitespace() {
        return (Kind::Skipped, first.len_utf8());
    }
    if rest.starts_with("//") {
        return (Kind::Skipped, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Kind::Skipped, block_comment(rest));
    }
    if let Some(length) = string(rest).or_else(|| character(rest)) {
        return (Kind::Literal, length);
    }
    if rest.starts_with("::") {
        return (Kind::Code, 2);
    }
    if is_word(first) {
        return (Kind::Code, rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
    }
    (Kind::Code, first.len_utf8())
}

/// Length of the comment, which may hold others.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < rest.len() {
        match &rest.as_bytes()[i..] {
            [b'/', b'*', ..] => (depth, i) = (depth + 1, i + 2),
            [b'*', b'/', ..] => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

/// Length of the string literal that `rest` starts with, if any: plain, byte, C or raw.
fn string(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        let after = rest.strip_prefix(prefix).unwrap_or("");
        let after = if prefix.ends_with('r') { after.trim_start_matches('#') } else { after };
        after.starts_with('"')
    })?;
    if prefix.ends_with('r') {
        let hashes = rest[prefix.len()..].bytes().take_while(|byte| *byte == b'#').count();
        let open = prefix.len() + hashes + 1;
        let close = format!("\"{}", "#".repeat(hashes));
        return Some(rest[open..].find(&close).map_or(rest.len(), |at| open + at + close.len()));
    }
    let open = prefix.len() + 1;
    Some(open + until_unescaped(&rest[open..], b'"'))
}

/// Length of the character literal that `rest` starts with, if any; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let open = if rest.starts_with("b'") { 2 } else { 1 };
    let inside = rest.strip_prefix("b'").or_else(|| rest.strip_prefix('\''))?;
    let first = inside.chars().next()?;
    let closed = first == '\\' || inside[first.len_utf8()..].starts_with('\'');
    closed.then(|| open + until_unescaped(inside, b'\''))
}

/// Length of `text` up to and with the first `close` that no backslash stands before.
fn until_unescaped(text: &str, close: u8) -> usize {
    let mut escaped = false;
    for (i, byte) in text.bytes().enumerate() {
        if byte == close && !escaped {
            return i + 1;
        }
        escaped = byte == b'\\' && !escaped;
    }
    text.len()
}
