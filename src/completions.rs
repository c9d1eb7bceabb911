//! Completion scripts, from the definition of the command line, with what its generators leave out for each shell.

use std::fmt::Write;

use clap_complete::Shell;

use crate::cli;

/// The script that completes commands, flags and usual values in a shell.
#[must_use]
pub fn completions(shell: Shell) -> String {
    let mut command = cli::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    let script = String::from_utf8_lossy(&script);
    match shell {
        Shell::Bash => format!("{script}{WORDS_OF_BASH}"),
        Shell::Zsh => for_zsh(&script),
        Shell::Fish => format!("{script}{FILES_OF_FISH}"),
        _ => script.into_owned(),
    }
}

/// Names of formats have colons, at which readline ends a word, and some flags take lists, in which it sees one: the script above is told of
/// whole words, and of the last item of a list alone.
const WORDS_OF_BASH: &str = include_str!("completions/words.bash");

/// A recipe may be a file.
const FILES_OF_FISH: &str = r#"complete -c quantc -n "__fish_quantc_using_subcommand quantize" -l recipe -r -F
complete -c quantc -n "__fish_quantc_using_subcommand plan" -l recipe -r -F
"#;

/// How the values of a flag end in a script for zsh.
const END_OF_ZSH_VALUES: &str = ")' \\\n";

/// zsh takes what is behind a colon in a name for its description, unless the colon is escaped once more; and it has to be told of lists, and that a
/// recipe may be a file.
fn for_zsh(script: &str) -> String {
    let mut script = script.to_owned();
    for id in formats::target::all().map(formats::target::TargetFormat::id).filter(|id| id.contains(':')) {
        let name = |colon| format!("{}\\:\"", id.replace(':', colon));
        script = script.replace(&name(r"\:"), &name(r"\\\:"));
    }
    let item = r#"compset -P "*,"; "#;
    let files = r#"; _files -g "*.toml""#;
    for (value, before, after) in [("FORMAT", item, ""), ("RUNTIME", item, ""), ("RECIPE", "", files)] {
        script = offering(&script, value, before, after);
    }
    script
}

/// The script with a few more words of zsh around the values that are offered for `value`.
fn offering(script: &str, value: &str, before: &str, after: &str) -> String {
    let start = format!(":{value}:(");
    let mut parts = script.split(&start);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (values, rest) = part.split_once(END_OF_ZSH_VALUES).unwrap_or((part, ""));
        let values = values.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).unwrap_or(values);
        let offer = format!("local -a usual; usual=({values}); _describe -t values value usual");
        // Writing into a string cannot fail.
        let _ = write!(out, ":{value}:{{{before}{offer}{after}}}' \\\n{rest}");
    }
    out
}
