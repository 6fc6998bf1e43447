//! The protobuf wire format, as far as OTLP metrics need it. Messages are written from the inside out: a part
//! is complete before its length is needed, so that lengths have their shortest form.

/// Wire types.
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;

/// The key of a field that has a length.
pub(super) const fn message(field: u8) -> u8 {
    (field << 3) | LENGTH
}

/// The key of a field of eight bytes.
pub(super) const fn fixed(field: u8) -> u8 {
    (field << 3) | FIXED64
}

/// The key of a field that is a number of variable length.
pub(super) const fn number(field: u8) -> u8 {
    field << 3
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// Bytes of `number` as a varint.
pub(super) fn varint_len(number: usize) -> usize {
    let bits = usize::BITS - (number | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Bytes of a field that holds `length` bytes; its key has one.
pub(super) fn field_len(length: usize) -> usize {
    1 + varint_len(length) + length
}

pub(super) fn put_head(out: &mut Vec<u8>, key: u8, length: usize) {
    out.push(key);
    put_varint(out, length as u64);
}

pub(super) fn put_bytes(out: &mut Vec<u8>, key: u8, bytes: &[u8]) {
    put_head(out, key, bytes.len());
    out.extend_from_slice(bytes);
}

/// A text, unless it is empty, which is the same as absent.
pub(super) fn put_text(out: &mut Vec<u8>, key: u8, text: &str) {
    if !text.is_empty() {
        put_bytes(out, key, text.as_bytes());
    }
}

pub(super) fn put_fixed(out: &mut Vec<u8>, key: u8, bits: u64) {
    out.push(key);
    out.extend_from_slice(&bits.to_le_bytes());
}

pub(super) fn put_double(out: &mut Vec<u8>, key: u8, value: f64) {
    put_fixed(out, key, value.to_bits());
}

/// Doubles in one packed field.
pub(super) fn put_packed(out: &mut Vec<u8>, key: u8, words: impl ExactSizeIterator<Item = u64>) {
    put_head(out, key, words.len() * 8);
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// A `KeyValue` with a text.
pub(super) fn put_attribute(out: &mut Vec<u8>, key: u8, name: &str, value: &str) {
    let inner = field_len(value.len());
    put_head(out, key, field_len(name.len()) + field_len(inner));
    put_bytes(out, message(1), name.as_bytes());
    put_head(out, message(2), inner);
    put_bytes(out, message(1), value.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_has_the_length_that_is_foretold_and_reads_back() {
        for number in [0, 1, 127, 128, 300, 16_383, 16_384, usize::MAX >> 1, usize::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, number as u64);
            assert_eq!(bytes.len(), varint_len(number), "{number}");
            assert_eq!(prost::encoding::decode_varint(&mut bytes.as_slice()), Ok(number as u64));
        }
    }
}
