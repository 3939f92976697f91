//! Reads the header blocks of HTTP/2 requests (HPACK, RFC 7541), as far as the checks of requests need them.
//!
//! Stores no name and no value: a field is reduced to what the checks look at and to its size. The time for a block is
//! proportional to its length.

use std::collections::VecDeque;

/// The size of the dynamic table, in bytes. Weir announces no other one (RFC 9113, section 6.5.2).
const TABLE_SIZE: usize = 4096;
/// What an entry of the dynamic table counts beside its name and its value (RFC 7541, section 4.1).
const ENTRY_OVERHEAD: usize = 32;
/// The most bytes of an integer after its first one.
const MAX_INTEGER_BYTES: usize = 4;

/// The names of the static table (RFC 7541, appendix A). No value of it has a number sign.
const STATIC_NAMES: [&str; 61] = [
    ":authority",
    ":method",
    ":method",
    ":path",
    ":path",
    ":scheme",
    ":scheme",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "accept",
    "access-control-allow-origin",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
];

/// The number of bits of each byte's Huffman code (RFC 7541, appendix B).
#[rustfmt::skip]
const CODE_LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
const SHORTEST_CODE: usize = 5;
const LONGEST_CODE: usize = 30;
const CODES: Codes = Codes::new();

/// The Huffman codes by their length. Codes of one length are consecutive numbers, in the order of their bytes, and a
/// longer code is a greater number if both are aligned to the left.
struct Codes {
    /// For each length: the number after its last code, aligned to the left of 32 bits.
    end: [u32; LONGEST_CODE + 1],
    /// For each length: its first code.
    first: [u32; LONGEST_CODE + 1],
    /// For each length: the position of its first byte in `bytes`.
    position: [usize; LONGEST_CODE + 1],
    /// All bytes in the order of their codes.
    bytes: [u8; 256],
}

impl Codes {
    const fn new() -> Self {
        let mut codes = Self {
            end: [0; LONGEST_CODE + 1],
            first: [0; LONGEST_CODE + 1],
            position: [0; LONGEST_CODE + 1],
            bytes: [0; 256],
        };
        let (mut code, mut position, mut length) = (0, 0, SHORTEST_CODE);
        while length <= LONGEST_CODE {
            (codes.first[length], codes.position[length]) = (code, position);
            let mut byte: u8 = 0;
            loop {
                if CODE_LENGTHS[byte as usize] as usize == length {
                    codes.bytes[position] = byte;
                    (code, position) = (code + 1, position + 1);
                }
                if byte == u8::MAX {
                    break;
                }
                byte += 1;
            }
            codes.end[length] = code << (32 - length);
            (code, length) = (code << 1, length + 1);
        }
        codes
    }
}

/// A header block that is not valid. No later block of the connection can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// What a field's name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldName {
    /// `:path`.
    Path,
    /// Another name that begins with a colon.
    OtherPseudo,
    /// Any other name.
    Ordinary,
}

/// A field of a header block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    pub name: FieldName,
    /// Whether the value has a number sign, `#`.
    pub has_number_sign: bool,
}

/// A string, reduced to what the checks look at.
#[derive(Debug, Clone, Copy, Default)]
struct Text {
    /// The number of its bytes, without the Huffman code.
    length: usize,
    begins_with_colon: bool,
    is_path: bool,
    has_number_sign: bool,
}

impl Text {
    /// Adds a byte at the end.
    fn push(&mut self, byte: u8) {
        const PATH: &[u8] = b":path";
        self.is_path = PATH.get(self.length) == Some(&byte) && (self.length == 0 || self.is_path);
        self.begins_with_colon |= self.length == 0 && byte == b':';
        self.has_number_sign |= byte == b'#';
        self.length += 1;
    }

    fn of(bytes: &[u8]) -> Self {
        let mut text = Self::default();
        bytes.iter().for_each(|byte| text.push(*byte));
        text
    }

    fn as_name(&self) -> FieldName {
        match self.begins_with_colon {
            true if self.is_path && self.length == 5 => FieldName::Path,
            true => FieldName::OtherPseudo,
            false => FieldName::Ordinary,
        }
    }
}

/// An entry of the dynamic table.
#[derive(Debug, Clone, Copy)]
struct Entry {
    field: Field,
    name_length: usize,
    size: usize,
}

/// Reads the header blocks of one connection, in their order.
#[derive(Debug)]
pub(crate) struct HeaderReader {
    /// The dynamic table. The newest entry comes first.
    table: VecDeque<Entry>,
    /// The size of all entries.
    used: usize,
    /// The size that the client chose.
    limit: usize,
}

impl HeaderReader {
    /// Begins a connection.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { table: VecDeque::new(), used: 0, limit: TABLE_SIZE }
    }

    /// Reads a complete header block. Calls `each` for every field.
    ///
    /// # Errors
    /// The block is not valid.
    pub(crate) fn read(&mut self, block: &[u8], mut each: impl FnMut(Field)) -> Result<(), Malformed> {
        let mut rest = block;
        let mut may_resize = true;
        while let Some(first) = rest.first().copied() {
            // RFC 7541, section 6: the first bits tell the representation.
            match first.leading_zeros() {
                0 => each(self.entry(integer(&mut rest, 7)?)?.field),
                1 => {
                    let entry = self.literal(&mut rest, 6)?;
                    self.insert(entry);
                    each(entry.field);
                }
                2 => {
                    let limit = integer(&mut rest, 5)?;
                    if !may_resize || limit > TABLE_SIZE {
                        return Err(Malformed);
                    }
                    self.limit = limit;
                    self.evict(0);
                    continue;
                }
                _ => each(self.literal(&mut rest, 4)?.field),
            }
            may_resize = false;
        }
        Ok(())
    }

    /// Returns the entry of an index of both tables.
    fn entry(&self, index: usize) -> Result<Entry, Malformed> {
        let index = index.checked_sub(1).ok_or(Malformed)?;
        match STATIC_NAMES.get(index) {
            Some(name) => {
                let name = Text::of(name.as_bytes());
                let field = Field { name: name.as_name(), has_number_sign: false };
                Ok(Entry { field, name_length: name.length, size: 0 })
            }
            None => self.table.get(index - STATIC_NAMES.len()).copied().ok_or(Malformed),
        }
    }

    /// Reads a literal field whose index has `prefix` bits.
    fn literal(&self, rest: &mut &[u8], prefix: u32) -> Result<Entry, Malformed> {
        let (name, name_length) = match integer(rest, prefix)? {
            0 => string(rest).map(|name| (name.as_name(), name.length))?,
            index => self.entry(index).map(|entry| (entry.field.name, entry.name_length))?,
        };
        let value = string(rest)?;
        let field = Field { name, has_number_sign: value.has_number_sign };
        Ok(Entry { field, name_length, size: name_length + value.length + ENTRY_OVERHEAD })
    }

    /// Adds an entry to the dynamic table. One that is larger than the table empties it (RFC 7541, section 4.4).
    fn insert(&mut self, entry: Entry) {
        self.evict(entry.size);
        if entry.size <= self.limit {
            self.used += entry.size;
            self.table.push_front(entry);
        }
    }

    /// Removes the oldest entries until there is room for `size` more bytes.
    fn evict(&mut self, size: usize) {
        while self.used + size > self.limit
            && let Some(oldest) = self.table.pop_back()
        {
            self.used -= oldest.size;
        }
    }
}

/// Reads an integer whose first byte has `prefix` bits of it (RFC 7541, section 5.1).
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let (first, mut after) = rest.split_first().ok_or(Malformed)?;
    let mask = (1 << prefix) - 1;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        for position in 0.. {
            let (byte, behind) = after.split_first().filter(|_| position < MAX_INTEGER_BYTES).ok_or(Malformed)?;
            after = behind;
            value += usize::from(byte & 0x7f) << (7 * position);
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = after;
    Ok(value)
}

/// Reads a string (RFC 7541, section 5.2).
fn string(rest: &mut &[u8]) -> Result<Text, Malformed> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (bytes, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    if is_huffman { decode(bytes) } else { Ok(Text::of(bytes)) }
}

/// Decodes a string in Huffman code.
fn decode(bytes: &[u8]) -> Result<Text, Malformed> {
    let mut text = Text::default();
    let mut input = bytes.iter();
    // The unread bits are the first `count` bits of `bits`.
    let (mut bits, mut count) = (0_u64, 0);
    loop {
        while count <= 56
            && let Some(byte) = input.next()
        {
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        // The end of a string is filled with ones, less than a byte of them.
        let filled = bits | u64::MAX.checked_shr(count).unwrap_or(0);
        let next = (filled >> 32) as u32;
        let Some(length) = (SHORTEST_CODE..=LONGEST_CODE).find(|length| next < CODES.end[*length]) else {
            return if count < 8 { Ok(text) } else { Err(Malformed) };
        };
        if length > count as usize {
            return Err(Malformed);
        }
        let code = next >> (32 - length);
        text.push(CODES.bytes[CODES.position[length] + (code - CODES.first[length]) as usize]);
        bits <<= length;
        count -= length as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loona_hpack::Decoder;
    use proptest::prelude::{ProptestConfig, any, prop_assert_eq};
    use proptest::{collection::vec, sample::select};

    /// Writes a string in Huffman code.
    fn encode(text: &[u8]) -> Vec<u8> {
        let (mut bits, mut count, mut out) = (0_u64, 0, Vec::new());
        for byte in text {
            let length = usize::from(CODE_LENGTHS[usize::from(*byte)]);
            let order = CODES.bytes.iter().position(|known| known == byte).unwrap();
            let code = u64::from(CODES.first[length]) + (order - CODES.position[length]) as u64;
            (bits, count) = (bits << length | code, count + length);
            while count >= 8 {
                out.push((bits >> (count - 8)) as u8);
                count -= 8;
            }
        }
        if count > 0 {
            out.push((bits << (8 - count)) as u8 | 0xff >> count);
        }
        out
    }

    fn with_length(first: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match bytes.len() {
            short @ 0..127 => out.push(first | short as u8),
            long => {
                out.push(first | 127);
                let mut left = long - 127;
                while left >= 128 {
                    out.push(left as u8 | 0x80);
                    left >>= 7;
                }
                out.push(left as u8);
            }
        }
        out.extend(bytes);
        out
    }

    fn plain(text: &[u8]) -> Vec<u8> {
        with_length(0, text)
    }

    fn huffman(text: &[u8]) -> Vec<u8> {
        with_length(0x80, &encode(text))
    }

    fn fields(reader: &mut HeaderReader, block: &[u8]) -> Option<Vec<Field>> {
        let mut fields = Vec::new();
        reader.read(block, |field| fields.push(field)).ok().map(|()| fields)
    }

    /// The same by another library.
    fn reference(decoder: &mut Decoder<'_>, block: &[u8]) -> Option<Vec<Field>> {
        let fields = decoder.decode(block).ok()?;
        let field = |(name, value): &(Vec<u8>, Vec<u8>)| Field {
            name: match name.as_slice() {
                b":path" => FieldName::Path,
                [b':', ..] => FieldName::OtherPseudo,
                _ => FieldName::Ordinary,
            },
            has_number_sign: value.contains(&b'#'),
        };
        Some(fields.iter().map(field).collect())
    }

    #[test]
    fn every_byte_has_a_huffman_code_that_is_read() {
        for byte in 0..=u8::MAX {
            for text in [vec![byte], vec![byte; 100], [b"#", [byte].as_slice(), b":path#"].concat()] {
                let block = [vec![0x00], huffman(b":path"), huffman(&text)].concat();
                let expected = reference(&mut Decoder::new(), &block);
                assert!(expected.is_some());
                assert_eq!(fields(&mut HeaderReader::new(), &block), expected, "{text:?}");
                let decoded = string(&mut huffman(&text).as_slice()).unwrap();
                assert_eq!((decoded.length, decoded.begins_with_colon), (text.len(), text[0] == b':'), "{text:?}");
            }
        }
    }

    #[test]
    fn examples_of_the_standard_are_read() {
        // RFC 7541, sections C.4.1 to C.4.3: three requests on one connection.
        let mut reader = HeaderReader::new();
        for (block, size) in [
            (b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff".as_slice(), 57),
            (b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf", 110),
            (b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf", 164),
        ] {
            assert!(fields(&mut reader, block).is_some());
            assert_eq!(reader.used, size);
        }
    }

    /// One representation of a field: its first bits, an index or a new name, a value, and whether both are in Huffman
    /// code.
    fn representation(first: u8, index: u8, name: usize, value: usize, is_huffman: bool) -> Vec<u8> {
        let texts = ["", ":path", ":paths", ":pat", ":", "x:path", "#", "/a#b", "/a"].map(str::to_owned);
        let texts = [texts.as_slice(), &["a".repeat(600), "#".repeat(60), "\u{e9}".repeat(2500)]].concat();
        let text = |number: usize| {
            let text = texts[number % texts.len()].as_bytes();
            if is_huffman { huffman(text) } else { plain(text) }
        };
        match (first, index) {
            (0x20, _) => vec![0x20 | (index % 31)],
            (0x80, _) => vec![0x80 | index],
            (_, 1..15) => [vec![first | index], text(value)].concat(),
            _ => [vec![first], text(name), text(value)].concat(),
        }
    }

    proptest::proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn blocks_mean_the_same_to_another_library(blocks in vec(vec(
            (select(&[0x00_u8, 0x10, 0x40, 0x40, 0x40, 0x80, 0x80, 0x20][..]), 0_u8..70, 0_usize..12, 0_usize..12, any::<bool>()),
            0..8,
        ), 1..12)) {
            let (mut reader, mut decoder) = (HeaderReader::new(), Decoder::new());
            decoder.set_max_allowed_table_size(TABLE_SIZE);
            for block in blocks {
                // A change of the table's size stands at the beginning of a block.
                let mut fields_of = block;
                fields_of.sort_by_key(|field| field.0 != 0x20);
                let mut block: Vec<u8> =
                    fields_of.into_iter().flat_map(|(a, b, c, d, e)| representation(a, b, c, d, e)).collect();
                // The other library refuses a block that ends with a change of the table's size.
                block.push(0x82);
                let expected = reference(&mut decoder, &block);
                prop_assert_eq!(&fields(&mut reader, &block), &expected, "{:02x?}", block);
                if expected.is_none() {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_is_not_valid_is_refused() {
        let padded =
            |padding: &[u8]| [vec![0x04], with_length(0x80, &[encode(b"/"), padding.to_vec()].concat())].concat();
        assert!(fields(&mut HeaderReader::new(), &padded(&[])).is_some());
        for block in [
            vec![0x80],
            vec![0xbe],
            vec![0xff],
            vec![0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            vec![0x04],
            vec![0x04, 5, b'/'],
            vec![0x82, 0x20],
            vec![0x3f, 0xe2, 0x1f],
            padded(&[0xff]),
            // The code of `0` has five bits; the end of this string is filled with zeros.
            vec![0x04, 0x81, 0x00],
            // The end-of-string code.
            vec![0x04, 0x84, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert_eq!(fields(&mut HeaderReader::new(), &block), None, "{block:02x?}");
        }
        assert!(fields(&mut HeaderReader::new(), &[0x3f, 0xe1, 0x1f]).is_some(), "4096 is the announced size");
    }
}
