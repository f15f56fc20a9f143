//! [`Padding`]: hides lengths.

/// The padding with which an encrypted store hides lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Padding {
    /// No padding.
    #[default]
    None,
    /// Lengths are rounded up by at most 12 %, so that few different lengths remain: the scheme
    /// [Padmé](https://doi.org/10.2478/popets-2019-0056). Beyond 1 MiB they are rounded up to whole
    /// MiB.
    Padme,
}

impl Padding {
    /// Returns the length to pad to.
    pub(in crate::store) fn of(self, length: usize) -> usize {
        match self {
            Padding::None => length,
            Padding::Padme if length > MIB => length.checked_next_multiple_of(MIB).unwrap_or(length),
            Padding::Padme => padme(length),
        }
    }

    /// Returns the length to pad a part of a blob to. All parts but the first are padded to whole
    /// parts, so that only their number shows.
    pub(in crate::store) fn of_part(self, place: u64, length: usize, part: usize) -> usize {
        match self {
            Padding::Padme if place > 0 => part,
            _ => self.of(length),
        }
    }
}

/// Rounds up so that the low bits are zero. The number of the other bits grows with the logarithm
/// of the exponent, as Padmé prescribes.
fn padme(length: usize) -> usize {
    let Some(bits) = length.checked_ilog2().filter(|bits| *bits > 0) else { return length };
    let loose = bits - (bits.ilog2() + 1).min(bits);
    let mask = (1 << loose) - 1;
    length.checked_add(mask).map_or(length, |length| length & !mask)
}

const MIB: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_rounded_up_by_little() {
        let lengths = (0..5000).chain((5000..4 * MIB).step_by(4999));
        for length in lengths {
            let padded = Padding::Padme.of(length);
            assert!(padded >= length && Padding::Padme.of(padded) == padded, "{length} to {padded}");
            assert!(length > MIB || padded <= length + length * 12 / 100, "{length} to {padded}");
            assert_eq!(Padding::None.of(length), length);
        }
        assert_eq!(Padding::Padme.of(MIB + 1), 2 * MIB);
    }
}
