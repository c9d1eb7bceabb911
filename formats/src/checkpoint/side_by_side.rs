//! Matrices whose outputs lie side by side in a tensor of many: what is a row here is a column there.

use std::fs::File;
use std::io;

use model::graph::SideBySide;

use super::Checkpoint;
use super::header::{Entry, Order};
use crate::files::read_at;

impl Checkpoint {
    /// Puts the members of such tensors in their place, where they are there, under their own names. A tensor that cannot be cut so stays as
    /// it is.
    pub fn split_side_by_side(&mut self, tensors: &[SideBySide]) {
        for tensor in tensors {
            let Some((file, whole)) = self.tensors.get(&tensor.name).cloned() else { continue };
            let (experts, inputs, outputs) = match whole.shape[..] {
                [experts, inputs, outputs] => (experts, Some(inputs), outputs),
                [experts, outputs] => (experts, None, outputs),
                _ => continue,
            };
            let (members, step) = (&tensor.members, tensor.alternating);
            let present = members.iter().any(|member| self.tensors.contains_key(member));
            if present
                || whole.bytes == 0
                || step == 0
                || experts.checked_mul(step) != Some(members.len())
                || !outputs.is_multiple_of(step)
            {
                continue;
            }
            self.tensors.remove(&tensor.name);
            let of_expert = whole.bytes / experts as u64;
            for (number, member) in members.iter().enumerate() {
                let shape = std::iter::once(outputs / step).chain(inputs).collect();
                let entry = Entry {
                    dtype: whole.dtype,
                    shape,
                    offset: whole.offset + (number / step) as u64 * of_expert,
                    bytes: of_expert / step as u64,
                    order: Order::Columns { first: number % step, step },
                };
                self.tensors.insert(member.clone(), (file, entry));
            }
        }
    }
}

/// Bytes of a member, row by row, from `offset` on. All columns of the rows that are asked for are read once, and a row more at each end.
pub(super) fn read_columns(
    file: &File,
    entry: &Entry,
    (first, step): (usize, usize),
    offset: u64,
    buffer: &mut [u8],
) -> io::Result<()> {
    if buffer.is_empty() {
        return Ok(());
    }
    let width = entry.dtype.bytes();
    let (rows, columns) = (entry.shape[0], entry.shape.get(1).copied().unwrap_or(1));
    let row_bytes = columns * width;
    let from = (offset / row_bytes as u64) as usize;
    let to = ((offset + buffer.len() as u64).div_ceil(row_bytes as u64)) as usize;
    let mut gathered = vec![0; (to - from) * row_bytes];
    // From the first to the last of these rows, in one column.
    let mut run = vec![0; ((to - from - 1) * step + 1) * width];
    for column in 0..columns {
        let place = (column * rows * step + from * step + first) * width;
        read_at(file, &mut run, entry.offset + place as u64)?;
        for (row, value) in run.chunks(step * width).enumerate() {
            let target = row * row_bytes + column * width;
            gathered[target..target + width].copy_from_slice(&value[..width]);
        }
    }
    let within = (offset - (from * row_bytes) as u64) as usize;
    buffer.copy_from_slice(&gathered[within..within + buffer.len()]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::checkpoint::Dtype;
    use crate::container::{SafetensorsWriter, TensorData, TensorSpec};

    use super::*;

    #[test]
    fn members_are_read_whole_and_in_any_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let spec = |name: &str, shape: &[usize]| TensorSpec {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
        };
        let specs = [spec("both", &[2, 3, 8]), spec("both_bias", &[2, 8])];
        let mut writer = SafetensorsWriter::create(folder.path(), &specs, u64::MAX, "pt").unwrap();
        for spec in &specs {
            let values: Vec<f32> =
                (0..spec.shape.iter().product()).map(|place: usize| place as f32).collect();
            let bytes = Dtype::F32.encode(&values).unwrap();
            writer.put(&TensorData { name: spec.name.clone(), bytes }).unwrap();
        }
        writer.finish().unwrap();
        let mut checkpoint = Checkpoint::open(folder.path()).unwrap();
        let tensor = |name: &str| SideBySide {
            name: name.to_owned(),
            members: ["0.gate", "0.up", "1.gate", "1.up"].map(|member| format!("{name}.{member}")).to_vec(),
            alternating: 2,
        };
        checkpoint.split_side_by_side(&[tensor("both"), tensor("both_bias"), tensor("neither")]);
        assert!(!checkpoint.contains("both"));
        // Expert 1 begins at 24; row 2 of its up is column 5 of three rows of eight.
        let up = checkpoint.read_matrix("both.1.up", (4, 3)).unwrap();
        assert_eq!(up.row(2).to_vec(), [24.0 + 5.0, 32.0 + 5.0, 40.0 + 5.0]);
        assert_eq!(checkpoint.read_vector("both_bias.1.gate", 4).unwrap().to_vec(), [8.0, 10.0, 12.0, 14.0]);
        assert_eq!(checkpoint.read_rows("both.0.gate", 1..3).unwrap().row(1).to_vec(), [4.0, 12.0, 20.0]);
        let whole = checkpoint.read("both.0.up").unwrap();
        for (from, length) in [(0, 48), (3, 9), (12, 12), (47, 1), (5, 40), (20, 0)] {
            let mut piece = vec![0; length];
            checkpoint.read_bytes_at("both.0.up", from as u64, &mut piece).unwrap();
            assert_eq!(piece, whole[from..from + length], "{from} {length}");
        }
    }
}
