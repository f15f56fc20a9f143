//! Fields of `criu_opts` that are younger than the table.

use prost::encoding::{WireType, encode_key, encode_varint};

use super::Options;

/// The value of a field that has no method of its own. See [`Options::raw_field`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawValue {
    /// A `bool`.
    Flag(bool),
    /// An `int32`, `uint32`, `int64`, `uint64` or enum; negative numbers as their two's complement
    /// in 64 bits.
    Number(u64),
    /// A `string`.
    Text(String),
    /// `bytes`, or an encoded message.
    Bytes(Vec<u8>),
}

impl<For> Options<For> {
    /// Sets a field of `criu_opts` by its number, for a criu whose fields this version of the crate
    /// does not know. Nothing is checked: criu ignores unknown fields and uses the others.
    ///
    /// Numbers from 72 on mean different things in criu's development branch and in forks of it: 72
    /// is `image_io_mode`, `allow_uprobes`, `stream`, `stream_restore` or `compress`. So set one
    /// only for a criu whose source is known, never by its version.
    ///
    /// ```
    /// use criu_rpc::{DumpOptions, options::RawValue};
    ///
    /// // Suppose that criu 5 has `optional bool brand_new = 99`.
    /// let options = DumpOptions::default().raw_field(99, RawValue::Flag(true));
    /// ```
    ///
    /// # Panics
    ///
    /// If the number is not a valid field number: 0, or above 2^29 - 1.
    #[must_use]
    pub fn raw_field(mut self, number: u32, value: RawValue) -> Self {
        assert!((1..1 << 29).contains(&number), "no field can have the number {number}");
        let (wire_type, bytes) = match value {
            RawValue::Flag(flag) => (WireType::Varint, Ok(u64::from(flag))),
            RawValue::Number(varint) => (WireType::Varint, Ok(varint)),
            RawValue::Text(text) => (WireType::LengthDelimited, Err(text.into_bytes())),
            RawValue::Bytes(bytes) => (WireType::LengthDelimited, Err(bytes)),
        };
        encode_key(number, wire_type, &mut self.raw);
        match bytes {
            Ok(varint) => encode_varint(varint, &mut self.raw),
            Err(bytes) => {
                encode_varint(bytes.len() as u64, &mut self.raw);
                self.raw.extend(bytes);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DumpOptions, proto::rpc::CriuOpts};
    use prost::Message;

    #[test]
    fn a_raw_field_reads_as_the_field_of_that_number() {
        let options = DumpOptions::default()
            .raw_field(3, RawValue::Flag(true))
            .raw_field(45, RawValue::Number(7))
            .raw_field(37, RawValue::Text("mnt[/a]:a".into()))
            .raw_field(37, RawValue::Bytes(b"b".to_vec()))
            .raw_field(500, RawValue::Number(u64::MAX));
        let mut bytes = options.wire().encode_to_vec();
        bytes.extend(options.raw());
        let opts = CriuOpts::decode(bytes.as_slice()).unwrap();
        assert_eq!((opts.leave_running, opts.timeout), (Some(true), Some(7)));
        assert_eq!(opts.external, ["mnt[/a]:a", "b"]);
    }

    #[test]
    #[should_panic(expected = "no field can have the number 0")]
    fn a_number_that_no_field_has_is_refused() {
        let _ = DumpOptions::default().raw_field(0, RawValue::Flag(true));
    }
}
