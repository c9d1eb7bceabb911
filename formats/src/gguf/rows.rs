//! How rows lie in a file: llama.cpp turns neighbouring features of heads, and wants all queries, all keys and all values together.

/// The order of a matrix's rows, or of a bias' numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As in the checkpoint.
    Same,
    /// Within each head the halves alternate.
    Interleaved {
        /// How many there are.
        heads: usize,
    },
    /// The checkpoint has for each key head the queries that share it, the key, the value; the file has all queries, all keys, all values.
    Regrouped {
        /// Key heads.
        key_heads: usize,
        /// Queries that share one.
        queries: usize,
    },
}

impl RowOrder {
    /// Whether so many rows can lie so.
    pub(crate) fn fits(self, rows: usize) -> bool {
        let parts = match self {
            Self::Same => 1,
            Self::Interleaved { heads } => 2 * heads,
            Self::Regrouped { key_heads, queries } => key_heads * (queries + 2),
        };
        rows > 0 && parts > 0 && rows.is_multiple_of(parts)
    }

    /// The row of the checkpoint that lies at `row` in the file.
    pub(crate) fn original(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Interleaved { heads } => {
                let features = rows / heads;
                let (head, feature) = (row / features, row % features);
                head * features + feature % 2 * (features / 2) + feature / 2
            }
            Self::Regrouped { key_heads, queries } => {
                let features = rows / (key_heads * (queries + 2));
                let (head, feature) = (row / features, row % features);
                let all = key_heads * queries;
                let (group, place) = match head.checked_sub(all) {
                    None => (head / queries, head % queries),
                    Some(key) if key < key_heads => (key, queries),
                    Some(value) => (value - key_heads, queries + 1),
                };
                (group * (queries + 2) + place) * features + feature
            }
        }
    }

    /// The row of the file at which the checkpoint's `row` lies.
    pub(crate) fn stored(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Interleaved { heads } => {
                let features = rows / heads;
                let (head, feature) = (row / features, row % features);
                head * features + feature % (features / 2) * 2 + feature / (features / 2)
            }
            Self::Regrouped { key_heads, queries } => {
                let features = rows / (key_heads * (queries + 2));
                let (head, feature) = (row / features, row % features);
                let (group, place) = (head / (queries + 2), head % (queries + 2));
                let stored = match place.checked_sub(queries) {
                    None => group * queries + place,
                    Some(0) => key_heads * queries + group,
                    Some(_) => key_heads * (queries + 1) + group,
                };
                stored * features + feature
            }
        }
    }

    /// Rows of the checkpoint's order in the file's.
    pub(crate) fn arrange(self, bytes: &[u8], rows: usize) -> Vec<u8> {
        let row_bytes = bytes.len() / rows.max(1);
        let order = (0..rows).map(|row| self.original(row, rows));
        order.flat_map(|row| &bytes[row * row_bytes..][..row_bytes]).copied().collect()
    }
}

/// A matrix of `rows` rows and numbers of `width` bytes, columns and rows exchanged.
pub(crate) fn transposed(bytes: &[u8], rows: usize, width: usize) -> Vec<u8> {
    let columns = bytes.len() / (rows * width).max(1);
    let places = (0..columns).flat_map(|column| (0..rows).map(move |row| (row * columns + column) * width));
    places.flat_map(|place| &bytes[place..place + width]).copied().collect()
}

/// Numbers in single precision with one more each.
pub(crate) fn one_more(bytes: &[u8]) -> Vec<u8> {
    changed(bytes, |number| number + 1.0)
}

/// The same with one less.
pub(crate) fn one_less(bytes: &[u8]) -> Vec<u8> {
    changed(bytes, |number| number - 1.0)
}

fn changed(bytes: &[u8], change: impl Fn(f32) -> f32) -> Vec<u8> {
    let numbers = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    numbers.flat_map(|number| change(number).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_move_as_llama_cpp_moves_them_and_back() {
        let heads = RowOrder::Interleaved { heads: 2 };
        let order: Vec<usize> = (0..16).map(|row| heads.original(row, 16)).collect();
        assert_eq!(order, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
        let bytes: Vec<u8> = (0..32).collect();
        assert_eq!(heads.arrange(&bytes, 16)[..6], [0, 1, 8, 9, 2, 3]);
        // Two key heads with two queries each, heads of two features.
        let groups = RowOrder::Regrouped { key_heads: 2, queries: 2 };
        let order: Vec<usize> = (0..16).map(|row| groups.original(row, 16)).collect();
        assert_eq!(order, [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]);
        for order in [RowOrder::Same, heads, groups] {
            assert!((0..16).all(|row| order.original(order.stored(row, 16), 16) == row), "{order:?}");
            assert!(order.fits(16));
        }
        assert!(!groups.fits(12) && !heads.fits(2) && !heads.fits(0));
    }

    #[test]
    fn matrices_are_turned_and_numbers_raised() {
        assert_eq!(transposed(&[0, 1, 2, 3, 4, 5], 2, 1), [0, 3, 1, 4, 2, 5]);
        assert_eq!(transposed(&[0, 1, 2, 3, 4, 5, 6, 7], 2, 2), [0, 1, 4, 5, 2, 3, 6, 7]);
        let bytes = 0.5_f32.to_le_bytes();
        assert_eq!(one_more(&bytes), 1.5_f32.to_le_bytes());
        assert_eq!(one_less(&one_more(&bytes)), bytes);
    }
}
