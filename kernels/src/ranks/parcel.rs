//! Arrays in messages: shape and numbers, one array after the other.

use std::io;

use ndarray::{Array2, ArrayView2};

use crate::bf16::{self, Precision};
use crate::stripes::Number;

/// Bytes of a shape.
const SHAPE: usize = 16;

/// Adds an array to a message.
pub fn put<T: Number>(message: &mut Vec<u8>, array: ArrayView2<'_, T>) {
    let (rows, columns) = array.dim();
    message.extend((rows as u64).to_le_bytes());
    message.extend((columns as u64).to_le_bytes());
    let first = message.len();
    message.resize(first + array.len() * T::BYTES, 0);
    T::put(array.as_standard_layout().as_slice().unwrap_or_default(), &mut message[first..]);
}

/// Adds an array whose numbers are only factors of products at this precision: in as few bytes as that takes.
pub fn put_factors(message: &mut Vec<u8>, array: ArrayView2<'_, f32>, precision: Precision) {
    match precision {
        Precision::Single => put(message, array),
        Precision::Bf16 => put(message, array.mapv(bf16::upper_half).view()),
    }
}

/// Takes what [`put_factors`] has put.
///
/// # Errors
/// As those of [`take`].
pub fn take_factors(message: &mut &[u8], precision: Precision) -> io::Result<Array2<f32>> {
    match precision {
        Precision::Single => take(message),
        Precision::Bf16 => Ok(take(message)?.mapv(bf16::of_upper_half)),
    }
}

/// Takes the next array from the beginning of a message.
///
/// # Errors
/// There is none of this type.
pub fn take<T: Number>(message: &mut &[u8]) -> io::Result<Array2<T>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "a message of another rank ends too early");
    let (shape, rest) = message.split_at_checked(SHAPE).ok_or_else(wrong)?;
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default()) as usize;
    let (rows, columns) = (number(&shape[..SHAPE / 2]), number(&shape[SHAPE / 2..]));
    let bytes = rows.checked_mul(columns).and_then(|numbers| numbers.checked_mul(T::BYTES));
    let (numbers, rest) = bytes.and_then(|bytes| rest.split_at_checked(bytes)).ok_or_else(wrong)?;
    *message = rest;
    let mut array = Array2::default((rows, columns));
    T::get(numbers, array.as_slice_mut().unwrap_or_default());
    Ok(array)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn arrays_come_back_and_short_messages_are_refused() {
        let (singles, doubles) = (array![[1.5_f32, -0.0, f32::MIN_POSITIVE]], array![[f64::MAX], [2.0]]);
        let mut message = Vec::new();
        put(&mut message, singles.t());
        put(&mut message, doubles.view());
        put(&mut message, Array2::<u8>::zeros((0, 7)).view());
        let mut rest = &message[..];
        let found: Array2<f32> = take(&mut rest).unwrap();
        assert!(found.iter().zip(&singles).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_eq!((found.dim(), take::<f64>(&mut rest).unwrap()), ((3, 1), doubles));
        assert_eq!((take::<u8>(&mut rest).unwrap().dim(), rest), ((0, 7), &[][..]));
        assert!(take::<u8>(&mut rest).is_err());
        for precision in [Precision::Single, Precision::Bf16] {
            let factors = array![[1.0_f32, -0.0, 1.0 / 3.0], [f32::MIN_POSITIVE / 3.0, 1e30, -7.0]];
            let mut message = Vec::new();
            put_factors(&mut message, factors.view(), precision);
            let found = take_factors(&mut &message[..], precision).unwrap();
            let rounded = |x: f32| if precision == Precision::Single { x } else { bf16::rounded(x) };
            assert!(found.iter().zip(&factors).all(|(a, &b)| a.to_bits() == rounded(b).to_bits()));
        }
        assert!(take::<f32>(&mut &message[..20]).is_err());
        assert!(take::<f32>(&mut &[255; 20][..]).is_err());
    }
}
