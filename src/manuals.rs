//! Manual pages, from the definition of the command line.

use std::path::Path;

use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli;
use crate::error::Error;

/// Writes a page for the program and one for each command, `quantc.1`, `quantc-quantize.1`, ...
///
/// # Errors
/// The system's.
pub fn write_manuals(directory: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(directory).map_err(Error::io(directory))?;
    let mut program = cli::command().disable_help_subcommand(true);
    program.build();
    let names: Vec<String> = program.get_subcommands().map(page_name).collect();
    let mut pages = vec![(page_name(&program), page(&program, &names))];
    let own = [page_name(&program)];
    pages.extend(program.get_subcommands().map(|command| (page_name(command), page(command, &own))));
    for (name, page) in pages {
        let path = directory.join(format!("{name}.1"));
        page.and_then(|page| std::fs::write(&path, page)).map_err(Error::io(&path))?;
    }
    Ok(())
}

fn page_name(command: &clap::Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

/// One page, in the sections that pages have.
fn page(command: &clap::Command, related: &[String]) -> std::io::Result<String> {
    let mut page = Vec::new();
    // What a screen has no room for, a page has.
    let whole = command.clone().mut_args(|argument| argument.hide_short_help(false));
    let source = concat!("quantc ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(whole).source(source).manual("quantc");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    man.render_options_section(&mut page)?;
    let mut roff = Roff::new();
    let examples = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    let examples: Vec<&str> = examples.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    if !examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]).control("nf", []);
        examples.iter().for_each(|line| _ = roff.text([roman(*line)]));
        roff.control("fi", []);
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in EXIT_STATUS {
        roff.control("TP", []).text([bold(code)]).text([roman(meaning)]);
    }
    if command.has_subcommands() {
        roff.control("SH", ["ENVIRONMENT"]);
        for (variable, meaning) in ENVIRONMENT {
            roff.control("TP", []).text([bold(variable)]).text([roman(meaning)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    for (number, name) in related.iter().enumerate() {
        let comma = if number + 1 < related.len() { ", " } else { "" };
        roff.text([bold(name.as_str()), roman(format!("(1){comma}"))]);
    }
    roff.to_writer(&mut page)?;
    Ok(tidied(&String::from_utf8_lossy(&page)))
}

/// Each section brings what roff has to know of quotes; once is enough.
fn tidied(page: &str) -> String {
    let mut quotes = 0;
    let mut tidy = String::with_capacity(page.len());
    for line in page.lines() {
        quotes += usize::from(QUOTES.contains(&line));
        if !QUOTES.contains(&line) || quotes <= QUOTES.len() {
            tidy.push_str(line.trim_end());
            tidy.push('\n');
        }
    }
    tidy
}

/// Lines that define the apostrophe.
const QUOTES: [&str; 2] = [r".ie \n(.g .ds Aq \(aq", r".el .ds Aq '"];

const EXIT_STATUS: [(&str, &str); 5] = [
    ("0", "done"),
    ("1", "something to fix: the message says what, and a hint what to do"),
    ("2", "unexpected"),
    ("3", "verification failed"),
    ("130", "interrupted"),
];

/// What the hub's other tools obey too.
const ENVIRONMENT: [(&str, &str); 7] = [
    ("HF_HOME", "where the hub's files are kept; ~/.cache/huggingface without it"),
    ("HF_HUB_CACHE", "where models and data sets are kept; HF_HOME/hub without it"),
    ("HF_ENDPOINT", "address of the hub"),
    ("HF_TOKEN", "what opens gated repositories"),
    ("HF_HUB_OFFLINE", "1: what is in the cache has to do"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "seconds without an answer or a byte, 30 without it"),
    ("NO_COLOR", "no color in help texts and messages"),
];
