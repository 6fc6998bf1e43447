//! The JSON form of a request, written as protobuf while it is read: what follows knows one form only.
//!
//! OTLP's own rules on top of protobuf's: identifiers are hexadecimal, enumerations are numbers, names are in
//! lowerCamelCase, unknown ones are skipped. 64-bit integers come as strings or as numbers.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::{
    intake::{BODY_BYTES_MAX, DEPTH_MAX, IntakeError},
    schema::{Field, Kind, Message},
    wire::Walk,
};

/// Bytes that are reserved for the length of a message, which is known at its end: 28 bits of it.
const LENGTH_BYTES: usize = 4;

/// Writes the JSON text of a request as protobuf.
pub(crate) fn to_protobuf(text: &[u8], request: &'static Message) -> Result<Vec<u8>, IntakeError> {
    let mut writer = Writer { out: Vec::new(), walk: Walk::new(), refusal: None };
    let mut json = serde_json::Deserializer::from_slice(text);
    let read = Fields { message: request, depth: DEPTH_MAX, writer: &mut writer }.deserialize(&mut json);
    let read = read.and_then(|()| json.end());
    match (read, writer.refusal) {
        (_, Some(refusal)) => Err(refusal),
        (Err(error), None) => Err(IntakeError::Json(error)),
        (Ok(()), None) => Ok(writer.out),
    }
}

/// The protobuf text so far.
struct Writer {
    out: Vec<u8>,
    walk: Walk,
    /// Why it goes no further, for an error that serde cannot carry.
    refusal: Option<IntakeError>,
}

impl Writer {
    fn refuse<E: serde::de::Error>(&mut self, why: IntakeError) -> E {
        let error = E::custom(&why);
        self.refusal = Some(why);
        error
    }

    fn key(&mut self, field: &Field, wire_type: u32) {
        self.varint(u64::from(field.number << 3 | wire_type));
    }

    fn varint(&mut self, value: u64) {
        prost::encoding::encode_varint(value, &mut self.out);
    }

    fn bytes(&mut self, field: &Field, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    /// Fills in the length of the message that began behind `start`.
    fn close(&mut self, start: usize) {
        let mut length = self.out.len() - start - LENGTH_BYTES;
        for (index, byte) in self.out[start..start + LENGTH_BYTES].iter_mut().enumerate() {
            let more = if index + 1 < LENGTH_BYTES { 0x80 } else { 0 };
            *byte = u8::try_from(length & 0x7f).expect("invariant: seven bits") | more;
            length >>= 7;
        }
    }

    /// An integer as its field wants it.
    fn integer(&mut self, field: &Field, value: i128) -> Result<(), &'static str> {
        const RANGE: &str = "the number is out of range";
        // An unsigned value and a signed one share their bits in a varint and in eight bytes.
        let signed = || i64::try_from(value).map_err(|_| RANGE);
        let bits = || u64::try_from(value).or_else(|_| signed().map(i64::cast_unsigned));
        match field.kind {
            Kind::Integer => {
                let bits = bits()?;
                self.key(field, 0);
                self.varint(bits);
            }
            Kind::Zigzag => {
                let value = signed()?;
                self.key(field, 0);
                self.varint(((value << 1) ^ (value >> 63)).cast_unsigned());
            }
            Kind::Fixed32 => {
                let value = u32::try_from(value).map_err(|_| RANGE)?;
                self.key(field, 5);
                self.out.extend_from_slice(&value.to_le_bytes());
            }
            Kind::Fixed64 => {
                let bits = bits()?;
                self.key(field, 1);
                self.out.extend_from_slice(&bits.to_le_bytes());
            }
            Kind::Message(_) | Kind::Text | Kind::Bytes | Kind::Id(_) | Kind::Bool | Kind::Double => {
                return Err("a number is not expected here");
            }
        }
        Ok(())
    }

    fn double(&mut self, field: &Field, value: f64) {
        self.key(field, 1);
        self.out.extend_from_slice(&value.to_le_bytes());
    }
}

/// The fields of one message.
struct Fields<'a> {
    message: &'static Message,
    depth: u32,
    writer: &'a mut Writer,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { message, depth, writer } = self;
        let Some(depth) = depth.checked_sub(1) else { return Err(writer.refuse(IntakeError::TooMany)) };
        while let Some(field) = map.next_key_seed(Name(message))? {
            match field {
                Some(field) => map.next_value_seed(Single { field, depth, writer, in_list: false })?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// The name of a field.
struct Name(&'static Message);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<&'static Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.fields.iter().find(|field| field.name == name))
    }
}

/// A field's value, or one of its values.
struct Single<'a> {
    field: &'static Field,
    depth: u32,
    writer: &'a mut Writer,
    in_list: bool,
}

impl Single<'_> {
    /// Room for one more value, whose longest fixed form has nine bytes.
    fn room<E: serde::de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        if self.field.is_repeated && !self.in_list {
            return Err(E::custom(format_args!("{}: a list is expected", self.field.name)));
        }
        if self.writer.out.len() + bytes + 16 > BODY_BYTES_MAX {
            return Err(self.writer.refuse(IntakeError::TooLarge));
        }
        Ok(())
    }

    fn is_double(&self) -> bool {
        matches!(self.field.kind, Kind::Double)
    }

    fn integer<E: serde::de::Error>(mut self, value: i128) -> Result<(), E> {
        self.room(0)?;
        self.writer
            .integer(self.field, value)
            .map_err(|why| E::custom(format_args!("{}: {why}", self.field.name)))
    }
}

impl<'de> DeserializeSeed<'de> for Single<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Single<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the value of {}", self.field.name)
    }

    /// `null` is the absence of a value.
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        if self.in_list { Err(E::custom("null in a list")) } else { Ok(()) }
    }

    fn visit_bool<E: serde::de::Error>(mut self, value: bool) -> Result<(), E> {
        self.room(0)?;
        if !matches!(self.field.kind, Kind::Bool) {
            return Err(E::custom(format_args!("{}: a boolean is not expected here", self.field.name)));
        }
        self.writer.key(self.field, 0);
        self.writer.varint(u64::from(value));
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        if self.is_double() { self.visit_f64(value as f64) } else { self.integer(value.into()) }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        if self.is_double() { self.visit_f64(value as f64) } else { self.integer(value.into()) }
    }

    fn visit_f64<E: serde::de::Error>(mut self, value: f64) -> Result<(), E> {
        if self.is_double() {
            self.room(0)?;
            self.writer.double(self.field, value);
            return Ok(());
        }
        // 1e3 and 5.0 are integers in JSON; beyond 2^53 a double is no longer one certain integer.
        let limit = 2f64.powi(53);
        if value.fract() != 0.0 || !(-limit..=limit).contains(&value) {
            return Err(E::custom(format_args!("{}: not an integer", self.field.name)));
        }
        #[expect(clippy::cast_possible_truncation, reason = "an integer below 2^53")]
        self.integer(value as i128)
    }

    fn visit_str<E: serde::de::Error>(mut self, text: &str) -> Result<(), E> {
        self.room(text.len())?;
        let name = self.field.name;
        let bad = |what: &str| E::custom(format_args!("{name}: {what}"));
        match self.field.kind {
            Kind::Text => self.writer.bytes(self.field, text.as_bytes()),
            Kind::Bytes => {
                let bytes = from_base64(text).ok_or_else(|| bad("not base64"))?;
                self.writer.bytes(self.field, &bytes);
            }
            Kind::Id(_) => {
                let bytes = from_hex(text).ok_or_else(|| bad("not hexadecimal"))?;
                self.writer.bytes(self.field, &bytes);
            }
            Kind::Double => {
                let value = from_text(text).ok_or_else(|| bad("not a number"))?;
                self.writer.double(self.field, value);
            }
            Kind::Integer | Kind::Zigzag | Kind::Fixed32 | Kind::Fixed64 => {
                let value = text.parse::<i128>().map_err(|_| bad("not an integer"))?;
                self.writer.integer(self.field, value).map_err(bad)?;
            }
            Kind::Message(_) | Kind::Bool => return Err(bad("a text is not expected here")),
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<(), A::Error> {
        self.room(LENGTH_BYTES)?;
        let Kind::Message(message) = self.field.kind else {
            return Err(A::Error::custom(format_args!(
                "{}: an object is not expected here",
                self.field.name
            )));
        };
        let Self { field, depth, writer, .. } = self;
        if let Err(refusal) = writer.walk.weigh(1) {
            return Err(writer.refuse(refusal));
        }
        writer.key(field, 2);
        let start = writer.out.len();
        writer.out.extend_from_slice(&[0; LENGTH_BYTES]);
        Fields { message, depth, writer }.visit_map(map)?;
        writer.close(start);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { field, depth, writer, in_list } = self;
        if in_list || !field.is_repeated {
            return Err(A::Error::custom(format_args!("{}: a list is not expected here", field.name)));
        }
        while list.next_element_seed(Single { field, depth, writer, in_list: true })?.is_some() {}
        Ok(())
    }
}

/// A double in a text, as protobuf's JSON has those that JSON has not.
fn from_text(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        // Rust's own words for these are not JSON's.
        text if text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')) => {
            text.parse().ok()
        }
        _ => None,
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// Base64 in either alphabet, with or without padding.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if digits.len() % 4 == 1 || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let (mut bits, mut held) = (0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).expect("invariant: eight bits"));
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
