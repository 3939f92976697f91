//! Reads a chunked body by the strict grammar of RFC 9112, section 7.1, and writes it again in its plainest form.
//!
//! Two servers that read the same chunks differently find different requests or responses behind them. Therefore nothing
//! that a lenient server reads in its own way leaves this module: no extension, no trailer, no other line end.

/// The most bytes of one chunk-size line, with its extensions.
const MAX_SIZE_LINE: usize = 4 << 10;
/// The most bytes of all extensions of a body, and of all its trailers.
const MAX_EXTENSIONS: usize = 16 << 10;
/// The most hexadecimal digits of a chunk size. It is below 2^60, so no sum of sizes overflows.
const MAX_DIGITS: usize = 15;

/// A body that does not follow the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages describe the variants
pub enum ChunkFault {
    #[error("a chunk size is not a hexadecimal number")]
    Size,
    #[error("a chunk extension is malformed")]
    Extension,
    #[error("a chunk does not end with CRLF")]
    ChunkEnd,
    #[error("a line does not end with CRLF")]
    LineEnd,
    #[error("a trailer is malformed")]
    Trailer,
    #[error("the chunk extensions or the trailers are too long")]
    TooLong,
}

/// The position in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// In a line with a chunk size.
    SizeLine,
    /// In the data of a chunk, of which this many bytes are left.
    Data(u64),
    /// Behind the data of a chunk, of whose line end this many bytes were read.
    DataEnd(usize),
    /// In a trailer, or in the empty line that ends the body.
    TrailerLine,
    /// Behind the body.
    End,
}

/// Reads one chunked body. The bytes may arrive in parts of any size.
#[derive(Debug)]
pub struct ChunkedBody {
    position: Position,
    /// The bytes of the current line so far.
    line: Vec<u8>,
    /// The bytes of extensions and trailers so far.
    extensions: usize,
    /// Whether `read` writes chunks, and not only their data.
    is_framed: bool,
}

impl Default for ChunkedBody {
    fn default() -> Self {
        Self { position: Position::SizeLine, line: Vec::new(), extensions: 0, is_framed: true }
    }
}

impl ChunkedBody {
    /// Returns a body of which [`ChunkedBody::read`] writes only the data.
    #[must_use]
    pub fn data_only() -> Self {
        Self { is_framed: false, ..Self::default() }
    }

    fn write_framing(&self, out: &mut Vec<u8>, framing: &[u8]) {
        if self.is_framed {
            out.extend_from_slice(framing);
        }
    }

    /// Returns whether the body is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.position == Position::End
    }

    /// Returns how many of the next bytes are data of the current chunk.
    #[must_use]
    pub fn data_left(&self) -> u64 {
        if let Position::Data(left) = self.position { left } else { 0 }
    }

    /// Moves past this many bytes of the current chunk's data. It must not be more than [`ChunkedBody::data_left`].
    pub fn pass(&mut self, bytes: u64) {
        if let Position::Data(left) = self.position {
            let left = left.saturating_sub(bytes);
            self.position = if left > 0 { Position::Data(left) } else { Position::DataEnd(0) };
        }
    }

    /// Reads the next bytes. Appends the body in its plainest form to `out`: chunks without extensions, and a last chunk
    /// without trailers. The last chunk is appended only after the whole body has proved to be valid. Returns how many
    /// bytes belong to the body; it is fewer than there are only if the body is complete.
    ///
    /// # Errors
    /// The body does not follow the grammar. What was appended is valid so far, but the body has no end.
    pub fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, ChunkFault> {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            match self.position {
                Position::End => break,
                Position::Data(left) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    out.extend_from_slice(&rest[..length]);
                    rest = &rest[length..];
                    self.pass(length as u64);
                }
                Position::DataEnd(read) => {
                    rest = &rest[1..];
                    self.position = match (read, byte) {
                        (0, b'\r') => Position::DataEnd(1),
                        (1, b'\n') => Position::SizeLine,
                        _ => return Err(ChunkFault::ChunkEnd),
                    };
                    if self.position == Position::SizeLine {
                        self.write_framing(out, b"\r\n");
                    }
                }
                Position::SizeLine | Position::TrailerLine => {
                    rest = &rest[1..];
                    if self.line_byte(byte)? {
                        self.end_line(out)?;
                    }
                }
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// Adds a byte to the current line. Returns whether the line is complete.
    fn line_byte(&mut self, byte: u8) -> Result<bool, ChunkFault> {
        let after_cr = self.line.last() == Some(&b'\r');
        if after_cr != (byte == b'\n') {
            return Err(ChunkFault::LineEnd);
        }
        if self.line.len() >= MAX_SIZE_LINE {
            return Err(ChunkFault::TooLong);
        }
        self.line.push(byte);
        Ok(after_cr)
    }

    /// Reads the current line, which ends with CRLF.
    fn end_line(&mut self, out: &mut Vec<u8>) -> Result<(), ChunkFault> {
        let line = std::mem::take(&mut self.line);
        let text = &line[..line.len() - 2];
        if self.position == Position::TrailerLine {
            if text.is_empty() {
                self.write_framing(out, b"0\r\n\r\n");
                self.position = Position::End;
                return Ok(());
            }
            check_trailer(text)?;
            self.count(text.len())?;
        } else {
            let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            let size = chunk_size(&text[..digits])?;
            check_extensions(&text[digits..])?;
            self.count(text.len() - digits)?;
            self.position = if size > 0 { Position::Data(size) } else { Position::TrailerLine };
            if size > 0 {
                self.write_framing(out, format!("{size:x}\r\n").as_bytes());
            }
        }
        // Keeps the memory for the next line.
        self.line = line;
        self.line.clear();
        Ok(())
    }

    fn count(&mut self, bytes: usize) -> Result<(), ChunkFault> {
        self.extensions += bytes;
        if self.extensions > MAX_EXTENSIONS { Err(ChunkFault::TooLong) } else { Ok(()) }
    }
}

/// Reads `1*HEXDIG`.
fn chunk_size(digits: &[u8]) -> Result<u64, ChunkFault> {
    let text = str::from_utf8(digits).map_err(|_| ChunkFault::Size)?;
    let significant = text.trim_start_matches('0');
    if text.is_empty() || significant.len() > MAX_DIGITS || text.len() > 4 * MAX_DIGITS {
        return Err(ChunkFault::Size);
    }
    Ok(if significant.is_empty() { 0 } else { u64::from_str_radix(significant, 16).map_err(|_| ChunkFault::Size)? })
}

/// Checks `*( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] )`.
fn check_extensions(text: &[u8]) -> Result<(), ChunkFault> {
    let mut rest = text;
    while !rest.is_empty() {
        rest = skip_spaces(rest).strip_prefix(b";").ok_or(if text.contains(&b';') {
            ChunkFault::Extension
        } else {
            ChunkFault::Size
        })?;
        rest = skip_token(skip_spaces(rest))?;
        if let Some(value) = skip_spaces(rest).strip_prefix(b"=") {
            let value = skip_spaces(value);
            rest = if value.starts_with(b"\"") { skip_quoted(value)? } else { skip_token(value)? };
        }
    }
    Ok(())
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    &text[spaces..]
}

fn skip_token(text: &[u8]) -> Result<&[u8], ChunkFault> {
    let length = text.iter().take_while(|byte| is_token_byte(**byte)).count();
    if length == 0 { Err(ChunkFault::Extension) } else { Ok(&text[length..]) }
}

/// Skips a quoted string (RFC 9110, section 5.6.4).
fn skip_quoted(text: &[u8]) -> Result<&[u8], ChunkFault> {
    let mut escaped = false;
    for (position, byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if !is_field_byte(*byte) => break,
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Ok(&text[position + 1..]),
            _ => {}
        }
    }
    Err(ChunkFault::Extension)
}

/// Checks `field-name ":" OWS field-value OWS` (RFC 9112, section 5).
fn check_trailer(line: &[u8]) -> Result<(), ChunkFault> {
    let name = line.iter().take_while(|byte| is_token_byte(**byte)).count();
    let has_value = line.get(name) == Some(&b':');
    let valid = name > 0 && has_value && line[name + 1..].iter().all(|byte| is_field_byte(*byte));
    if valid { Ok(()) } else { Err(ChunkFault::Trailer) }
}

/// Returns whether a byte may be in a token (RFC 9110, section 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Returns whether a byte may be in a field value (RFC 9110, section 5.5).
fn is_field_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `body` in parts of `step` bytes. Returns the plain body, how many bytes belong to it, and whether it is complete.
    fn read(body: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), ChunkFault> {
        let (mut reader, mut out, mut used) = (ChunkedBody::default(), Vec::new(), 0);
        for part in body.chunks(step) {
            used += reader.read(part, &mut out)?;
        }
        Ok((out, used, reader.is_complete()))
    }

    #[test]
    fn a_valid_body_is_written_in_its_plainest_form() {
        let long = format!("5;x={}\r\nhello\r\n0\r\n\r\n", "y".repeat(3000));
        for (body, plain, rest) in [
            ("0\r\n\r\n", "0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", ""),
            ("005\r\nhello\r\n00\r\n\r\nGET", "5\r\nhello\r\n0\r\n\r\n", "GET"),
            (
                "a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n",
                "a\r\n0123456789\r\nb\r\n0123456789a\r\n0\r\n\r\n",
                "",
            ),
            ("5;a\r\nhello\r\n0;b=c\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", ""),
            ("5 ; a = \"x;\\\" y\"\t;b\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\nTrailer: v \r\nx:\r\n\r\n0\r\n", "5\r\nhello\r\n0\r\n\r\n", "0\r\n"),
            ("5\r\n\r\n0\r\n\r\n0\r\n\r\n", "5\r\n\r\n0\r\n\r\n0\r\n\r\n", ""),
            (&long, "5\r\nhello\r\n0\r\n\r\n", ""),
        ] {
            for step in 1..=body.len() {
                let used = body.len() - rest.len();
                assert_eq!(
                    read(body.as_bytes(), step),
                    Ok((plain.as_bytes().to_vec(), used, true)),
                    "{body:?} by {step}"
                );
            }
        }
    }

    #[test]
    fn what_servers_read_differently_is_refused() {
        use ChunkFault::*;
        let many = "1;a=bcdefghijklmnop\r\nx\r\n".repeat(1000);
        let trailers = format!("0\r\n{}\r\n", "a: bcdefghijklmnop\r\n".repeat(1000));
        for (body, fault) in [
            ("\r\n", Size),
            (";\r\n", Size),
            (";a\r\n0\r\n\r\n", Size),
            (" 5\r\nhello\r\n", Size),
            ("5 \r\nhello\r\n0\r\n\r\n", Size),
            ("+5\r\nhello\r\n", Size),
            ("-1\r\n", Size),
            ("0x5\r\nhello\r\n", Size),
            ("5_0\r\n", Size),
            ("5,5\r\nhello\r\n", Size),
            ("G\r\n", Size),
            ("10000000000000000\r\n", Size),
            ("fffffffffffffffff\r\n", Size),
            ("5\nhello\r\n", LineEnd),
            ("5\r\nhello\n0\r\n\r\n", ChunkEnd),
            ("5\r\nhello0\r\n\r\n", ChunkEnd),
            ("5\r\nhello!\r\n0\r\n\r\n", ChunkEnd),
            ("5\rhello", LineEnd),
            ("5;a\nb\r\nhello\r\n0\r\n\r\n", LineEnd),
            ("5;a\rb\r\nhello\r\n0\r\n\r\n", LineEnd),
            ("5;\r\nhello\r\n0\r\n\r\n", Extension),
            ("5;a=\r\nhello\r\n0\r\n\r\n", Extension),
            ("5;=b\r\nhello\r\n0\r\n\r\n", Extension),
            ("5;a=b c\r\nhello\r\n0\r\n\r\n", Extension),
            ("5;a=\"b\r\nhello\r\n0\r\n\r\n", Extension),
            ("5;a=\"\u{1}\"\r\nhello\r\n0\r\n\r\n", Extension),
            ("5;a=\"\\\"\r\nhello\r\n0\r\n\r\n", Extension),
            ("0\r\njunk\r\n\r\n", Trailer),
            ("0\r\n: x\r\n\r\n", Trailer),
            ("0\r\na : x\r\n\r\n", Trailer),
            ("0\r\n a: x\r\n\r\n", Trailer),
            ("0\r\na: \u{0}\r\n\r\n", Trailer),
            ("0\r\n\n", LineEnd),
            ("0\r\na: x\n\r\n", LineEnd),
            ("0\n\n", LineEnd),
            (&many, TooLong),
            (&trailers, TooLong),
            (&format!("5;{}", "a".repeat(5000)), TooLong),
            (&"0".repeat(100), Size),
        ] {
            let body = if fault == Size && !body.contains('\n') { format!("{body}\r\n") } else { body.to_owned() };
            for step in [1, 2, 3, 7, body.len()] {
                assert_eq!(read(body.as_bytes(), step), Err(fault), "{body:?} by {step}");
            }
        }
    }

    #[test]
    fn a_body_that_is_cut_anywhere_has_no_last_chunk() {
        let body = "5;a=\"b\"\r\nhello\r\nA\r\n0\r\n\r\n01234\r\n0;x\r\na: b\r\n\r\n";
        for end in 0..body.len() {
            let (plain, used, complete) = read(&body.as_bytes()[..end], 4).unwrap();
            assert!(!complete && used == end, "{end}");
            assert!("5\r\nhello\r\na\r\n0\r\n\r\n01234\r\n".as_bytes().starts_with(&plain), "{end}");
        }
    }
}
