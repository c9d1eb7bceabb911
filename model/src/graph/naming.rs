//! What checkpoints put before the names of a description.

use crate::architecture::Architecture;

/// How a checkpoint's names differ from the description's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Naming {
    /// What the description's names of layers and embedding begin with, with its dot.
    base: String,
    /// What takes the place of that.
    stored: String,
    /// What comes before all other names, the head's.
    outer: String,
}

impl Naming {
    /// The first of the known ways by which `holds` knows the embedding; the description's own, where none does.
    pub(super) fn of(architecture: &Architecture, holds: &dyn Fn(&str) -> bool) -> Self {
        let base = match architecture.embedding.split_once('.') {
            Some((base, _)) => format!("{base}."),
            None => String::new(),
        };
        let naming =
            |stored: String, outer: &str| Self { base: base.clone(), stored, outer: outer.to_owned() };
        let ways = [
            naming(base.clone(), ""),
            // A text tower, as transformers 4 and 5 name it.
            naming(format!("language_model.{base}"), "language_model."),
            naming(format!("model.language_model.{base}"), "model.language_model."),
            naming("model.language_model.".to_owned(), ""),
            // A decoder that was saved without its head.
            naming(String::new(), ""),
        ];
        let known = ways.iter().find(|way| holds(&super::weight(&way.module(architecture.embedding))));
        known.unwrap_or(&ways[0]).clone()
    }

    /// Whether a name is outside a text tower, where the decoder is one.
    pub(super) fn is_of_another_tower(&self, name: &str) -> bool {
        self.stored != self.base && !self.stored.is_empty() && !name.starts_with(&self.stored)
    }

    /// A module's name in the checkpoint.
    pub(super) fn module(&self, module: &str) -> String {
        match module.strip_prefix(&self.base) {
            Some(rest) => format!("{}{rest}", self.stored),
            None => format!("{}{module}", self.outer),
        }
    }
}
