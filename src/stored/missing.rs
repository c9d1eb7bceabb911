//! Why a path is no model, and what may have been meant.

use std::path::{Path, PathBuf};

use crate::error::{self, Error};

/// A directory that holds no model, with one in it that does.
pub(super) fn no_checkpoint(path: &Path) -> Error {
    let inside = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut models: Vec<PathBuf> = inside.filter(|inner| inner.join("config.json").is_file()).collect();
    models.sort_unstable();
    let hint = match models.first() {
        Some(model) => format!("did you mean {}?", model.display()),
        None => "name the directory that holds config.json and the safetensors files".to_owned(),
    };
    Error::NoModel {
        path: path.to_owned(),
        problem: "no config.json here, expected a checkpoint's directory",
        hint,
    }
}

/// Why a path is no model, with what may have been meant.
pub(crate) fn no_directory(path: &Path) -> Error {
    let wanted = "name the directory that holds config.json and the safetensors files";
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (problem, hint) = if path.exists() {
        let hint = match folder.join("config.json").is_file() {
            true => format!("the model is the whole directory: {}", folder.display()),
            false => wanted.to_owned(),
        };
        ("is not a directory", hint)
    } else {
        let beside = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let beside = beside.filter(|entry| entry.path().is_dir());
        let names: Vec<String> = beside.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let hint = match error::nearest(name, names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {}?", folder.join(near).display()),
            None => format!("{wanted}, or a model of the hub as org/name"),
        };
        ("does not exist", hint)
    };
    Error::NoModel { path: path.to_owned(), problem, hint }
}
