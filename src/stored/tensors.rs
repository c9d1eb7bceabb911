//! The tensors of a stored model: which there must be, which nobody knows, and what an original would have.

use std::collections::{BTreeMap, BTreeSet};

use formats::Dtype;
use formats::container::TensorSpec;
use model::linear::Linear;

use super::StoredModel;
use crate::error::Error;

/// Rows that are compared at a time.
const COMPARED_ROWS: usize = 4096;

impl StoredModel {
    /// The tensors of a linear that has a grid.
    pub(crate) fn packed_tensors(&self, linear: &Linear) -> Vec<String> {
        let stored = self.format.as_ref().zip(self.scheme(linear));
        stored.map_or_else(Vec::new, |(format, scheme)| format.tensors(linear, scheme))
    }

    /// Every tensor as an original of this model would have it: those that are not packed, and the weights of those that are, in the type
    /// `runtime`. What the format widened, and holds the same numbers in `runtime`, is as narrow again.
    pub(crate) fn dense_tensors(&self, runtime: Dtype) -> Result<Vec<TensorSpec>, Error> {
        let packed: Vec<Linear> = self.matrices().filter(|linear| self.scheme(linear).is_some()).collect();
        let modules: BTreeSet<&str> = packed.iter().map(|linear| linear.name.as_str()).collect();
        let parts: BTreeSet<String> = packed.iter().flat_map(|linear| self.packed_tensors(linear)).collect();
        let is_part = |name: &str| {
            // Formats differ in what else they have beside the codes; a bias is the model's.
            let beside = name
                .rsplit_once('.')
                .is_some_and(|(module, part)| part != "bias" && modules.contains(module));
            beside || parts.contains(name)
        };
        let unknown: BTreeSet<String> = self.unknown_tensors().into_iter().collect();
        let mut tensors = Vec::new();
        for name in self.checkpoint.names().filter(|name| !is_part(name)) {
            let info = self.checkpoint.info(name)?;
            let mut dtype = info.dtype;
            if !packed.is_empty() && dtype == Dtype::F32 && runtime != Dtype::F32 && !unknown.contains(name) {
                let values = dtype.decode(&self.checkpoint.read(name)?).unwrap_or_default();
                let narrowed = runtime.encode(&values).and_then(|bytes| runtime.decode(&bytes));
                if narrowed.as_ref() == Some(&values) {
                    dtype = runtime;
                }
            }
            tensors.push(TensorSpec { name: name.to_owned(), dtype, shape: info.shape.to_vec() });
        }
        tensors.extend(packed.iter().map(|linear| TensorSpec {
            name: linear.weight_name(),
            dtype: runtime,
            shape: linear.weight_shape().to_vec(),
        }));
        Ok(tensors)
    }

    /// Tensors that belong to no part of the description.
    pub(crate) fn unknown_tensors(&self) -> Vec<String> {
        let mut known: BTreeSet<String> = self.model.expected_tensors().map(|tensor| tensor.name).collect();
        // A tied model may store its head all the same.
        known.insert(self.model.untied_head());
        let mut modules = BTreeSet::new();
        for linear in self.matrices().filter(|linear| self.scheme(linear).is_some()) {
            known.extend(self.packed_tensors(&linear));
            modules.insert(linear.name);
        }
        // What formats have beside codes belongs to the linear, as scales of inputs do.
        let beside = |name: &str| {
            name.rsplit_once('.').is_some_and(|(module, part)| part != "bias" && modules.contains(module))
        };
        self.checkpoint
            .names()
            .filter(|name| !known.contains(*name) && !beside(name))
            .map(str::to_owned)
            .collect()
    }

    /// Names and shapes against the file, before any work.
    pub(super) fn check_tensors(&self) -> Result<(), Error> {
        let quantized: BTreeMap<String, Linear> = self
            .matrices()
            .filter(|linear| self.scheme(linear).is_some())
            .map(|linear| (linear.weight_name(), linear))
            .collect();
        for tensor in self.model.expected_tensors() {
            if let Some(linear) = quantized.get(&tensor.name) {
                if let (Some(format), Some(scheme)) = (&self.format, self.scheme(linear)) {
                    for name in format.tensors(linear, scheme) {
                        self.checkpoint.info(&name)?;
                    }
                }
                continue;
            }
            self.checkpoint.expect_shape(&tensor.name, &tensor.shape)?;
            let found = self.checkpoint.info(&tensor.name)?;
            if !found.dtype.is_float() {
                let problem = format!(
                    "tensor `{}` of {} is {}, expected F32, F16 or BF16",
                    tensor.name,
                    found.file.display(),
                    found.dtype.name()
                );
                return Err(Error::Mismatch { path: self.path.clone(), problem });
            }
        }
        Ok(())
    }

    /// Whether the file holds a head of its own although config.json ties it to the embedding.
    pub(crate) fn stores_tied_head(&self) -> bool {
        self.model.hyperparameters.tied_head && self.checkpoint.contains(&self.model.untied_head())
    }

    /// Runtimes do not agree on which of two different heads counts: some tie, some take the file's.
    pub(super) fn check_tied_head(&self) -> Result<(), Error> {
        if !self.stores_tied_head() {
            return Ok(());
        }
        let (head, embedding) = (self.model.untied_head(), self.model.embedding());
        let numbers = &self.model.hyperparameters;
        self.checkpoint.expect_shape(&head, &[numbers.vocabulary, numbers.embedding_size])?;
        for first in (0..numbers.vocabulary).step_by(COMPARED_ROWS) {
            let rows = first..(first + COMPARED_ROWS).min(numbers.vocabulary);
            let embedded = self.row_values(&self.outer.embedding.linear, rows.clone())?;
            if self.checkpoint.read_rows(&head, rows)? != embedded {
                let problem = format!(
                    "config.json ties the head to `{embedding}` (tie_word_embeddings), but `{head}` holds other numbers"
                );
                return Err(Error::Mismatch { path: self.path.clone(), problem });
            }
        }
        Ok(())
    }
}
