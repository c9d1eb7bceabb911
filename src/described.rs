//! `--architecture`: a description that the user wrote.

use std::path::Path;

use crate::error::Error;

/// Largest description that is read, bytes.
const MOST: u64 = 1 << 20;

/// Makes the architecture in a TOML file known to everything that opens models.
///
/// # Errors
/// A file that cannot be read or describes nothing.
pub fn add_architecture(path: &Path) -> Result<(), Error> {
    let found = std::fs::metadata(path).map_err(Error::io(path))?;
    let fail = |problem: String| Error::Argument {
        flag: "--architecture",
        problem: format!("{}: {problem}", path.display()),
    };
    if found.len() > MOST {
        return Err(fail(format!("{} bytes, expected at most {MOST}", found.len())));
    }
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let changes: serde_json::Value = toml::from_str(&text).map_err(|e| fail(e.message().to_owned()))?;
    let architecture = model::described::describe(&changes).map_err(fail)?;
    model::registry::add(architecture);
    Ok(())
}
