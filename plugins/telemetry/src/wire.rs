//! The protobuf form of a request: looked through once, without an allocation, before anything is decoded.

use crate::{
    intake::{DEPTH_MAX, IntakeError, MESSAGES_MAX},
    schema::{Field, Kind, Message, Role},
};

/// What a walk may still meet, and what it met.
#[derive(Debug)]
pub(crate) struct Walk {
    messages_left: usize,
    /// Data points, log records or spans so far.
    pub(crate) items: u64,
}

impl Walk {
    /// A walk through one request.
    pub(crate) fn new() -> Self {
        Self { messages_left: MESSAGES_MAX, items: 0 }
    }

    /// Takes so many more messages into account: two bytes on the wire can become two hundred in memory.
    pub(crate) fn weigh(&mut self, messages: usize) -> Result<(), IntakeError> {
        self.messages_left = self.messages_left.checked_sub(messages).ok_or(IntakeError::TooMany)?;
        Ok(())
    }

    /// Checks a message and all that is in it: lengths, types, text, identifiers.
    pub(crate) fn message(&mut self, bytes: &[u8], message: &Message, depth: u32) -> Result<(), IntakeError> {
        let depth = depth.checked_sub(1).ok_or(IntakeError::TooMany)?;
        let (mut trace, mut span) = (false, false);
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            let Some(field) = message.fields.iter().find(|field| field.number == number) else { continue };
            self.field(field, value, depth)?;
            if message.role == Role::Span
                && let Value::Bytes(id) = value
            {
                let is_set = id.iter().any(|byte| *byte != 0);
                match number {
                    1 => trace = is_set,
                    2 => span = is_set,
                    _ => {}
                }
            }
        }
        match message.role {
            Role::Span if !(trace && span) => return Err(IntakeError::Identifier),
            Role::Span | Role::Item => self.items += 1,
            Role::Part => {}
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, value: Value<'_>, depth: u32) -> Result<(), IntakeError> {
        match (field.kind, value) {
            (Kind::Message(inner), Value::Bytes(bytes)) => {
                self.weigh(1)?;
                self.message(bytes, inner, depth)
            }
            (Kind::Text, Value::Bytes(bytes)) => {
                if field.is_repeated {
                    self.weigh(1)?;
                }
                std::str::from_utf8(bytes).map(drop).map_err(|_| IntakeError::Malformed)
            }
            (Kind::Id(length), Value::Bytes(bytes)) if !bytes.is_empty() && bytes.len() != length => {
                Err(IntakeError::Identifier)
            }
            (Kind::Id(_) | Kind::Bytes, Value::Bytes(_)) => Ok(()),
            // Packed numbers.
            (Kind::Integer | Kind::Zigzag, Value::Bytes(bytes)) if field.is_repeated => {
                self.weigh(1 + bytes.len() / 4)?;
                packed_varints(bytes)
            }
            (Kind::Fixed64 | Kind::Double, Value::Bytes(bytes)) if field.is_repeated => {
                if bytes.len().is_multiple_of(8) { Ok(()) } else { Err(IntakeError::Malformed) }
            }
            (Kind::Bool | Kind::Integer | Kind::Zigzag, Value::Varint)
            | (Kind::Fixed32, Value::Fixed32)
            | (Kind::Fixed64 | Kind::Double, Value::Fixed64) => Ok(()),
            (
                Kind::Message(_)
                | Kind::Text
                | Kind::Bytes
                | Kind::Id(_)
                | Kind::Bool
                | Kind::Integer
                | Kind::Zigzag
                | Kind::Fixed32
                | Kind::Fixed64
                | Kind::Double,
                _,
            ) => Err(IntakeError::Malformed),
        }
    }
}

/// Checks a whole request and returns how many items there are.
pub(crate) fn check(bytes: &[u8], request: &Message) -> Result<u64, IntakeError> {
    let mut walk = Walk::new();
    walk.message(bytes, request, DEPTH_MAX)?;
    Ok(walk.items)
}

/// The value of a field on the wire.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    Varint,
    Fixed32,
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of a message that are left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    /// Number and value of the next field.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, IntakeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = u32::try_from(self.varint()?).map_err(|_| IntakeError::Malformed)?;
        if key >> 3 == 0 {
            return Err(IntakeError::Malformed);
        }
        let value = match key & 7 {
            0 => {
                self.varint()?;
                Value::Varint
            }
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| IntakeError::Malformed)?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Value::Fixed32
            }
            _ => return Err(IntakeError::Malformed),
        };
        Ok(Some((key >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, IntakeError> {
        prost::encoding::decode_varint(&mut self.0).map_err(|_| IntakeError::Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], IntakeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(IntakeError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn packed_varints(bytes: &[u8]) -> Result<(), IntakeError> {
    let mut left = Fields(bytes);
    while !left.0.is_empty() {
        left.varint()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schema;

    #[test]
    fn spans_need_identifiers_and_all_others_have_the_right_length_or_none() {
        let span = |trace: &[u8], span: &[u8]| {
            let mut bytes = Vec::new();
            prost::encoding::bytes::encode(1, &trace.to_vec(), &mut bytes);
            prost::encoding::bytes::encode(2, &span.to_vec(), &mut bytes);
            (0..3).fold(bytes, |content, depth| {
                let mut outer = Vec::new();
                prost::encoding::bytes::encode(if depth < 2 { 2 } else { 1 }, &content, &mut outer);
                outer
            })
        };
        assert_eq!(check(&span(&[1; 16], &[1; 8]), &schema::TRACES).unwrap(), 1);
        for (trace, id) in
            [(&[1; 16][..], &[0; 8][..]), (&[0; 16], &[1; 8]), (&[], &[1; 8]), (&[1; 15], &[1; 8])]
        {
            assert!(matches!(check(&span(trace, id), &schema::TRACES), Err(IntakeError::Identifier)));
        }
    }

    #[test]
    fn what_is_not_of_its_type_is_malformed() {
        // A varint where a message is expected, text that is not UTF-8, a group, field 0, a broken length.
        for bad in [&b"\x08\x01"[..], b"\x0a\x03\x1a\x01\xff", b"\x0b", b"\x02\x00", b"\x0a\x05ab", b"\xff"] {
            assert!(matches!(check(bad, &schema::LOGS), Err(IntakeError::Malformed)), "{bad:?}");
        }
        assert_eq!(check(b"\x7a\x01a", &schema::LOGS).unwrap(), 0, "an unknown field is skipped");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            for table in [&schema::METRICS, &schema::LOGS, &schema::TRACES] {
                check(&bytes, table).ok();
            }
        }
    }
}
