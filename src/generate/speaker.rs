//! The dialogue of the command line: one prompt, or a line at a time from a terminal.

use std::io::{BufRead, IsTerminal, Read, Write};

use super::{Answer, Dialogue, End};
use crate::error::Error;
use crate::progress::{Progress, Terminal, wait_for_a_line};

/// Bytes of a prompt from standard input, at most.
const MOST_PROMPT: u64 = 1 << 20;

/// Reads prompts, prints answers as they come, and says at the end how fast they came.
#[derive(Debug)]
pub struct Speaker<'t> {
    terminal: &'t Terminal,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Given(Option<String>),
    Lines,
}

impl<'t> Speaker<'t> {
    /// With this prompt; without one, what standard input holds, or line by line where it is a terminal.
    ///
    /// # Errors
    /// Standard input that cannot be read, is not UTF-8 or longer than a mebibyte.
    pub fn new(prompt: Option<String>, terminal: &'t Terminal) -> Result<Self, Error> {
        let source = match prompt {
            Some(prompt) => Source::Given(Some(prompt)),
            None if std::io::stdin().is_terminal() => Source::Lines,
            None => {
                let mut text = String::new();
                let read = std::io::stdin().lock().take(MOST_PROMPT + 1).read_to_string(&mut text);
                let found = read.map_err(Error::io("standard input"))?;
                if found as u64 > MOST_PROMPT {
                    let problem = format!("standard input is longer than {MOST_PROMPT} bytes");
                    return Err(Error::Argument { flag: "--prompt", problem });
                }
                Source::Given(Some(text.trim_end().to_owned()))
            }
        };
        Ok(Self { terminal, source })
    }
}

impl Dialogue for Speaker<'_> {
    fn prompt(&mut self) -> Result<Option<String>, Error> {
        match &mut self.source {
            Source::Given(prompt) => Ok(prompt.take()),
            Source::Lines => loop {
                eprint!("> ");
                let mut line = String::new();
                let waiting = wait_for_a_line();
                let read = std::io::stdin().lock().read_line(&mut line);
                drop(waiting);
                if read.map_err(Error::io("standard input"))? == 0 {
                    eprintln!();
                    return Ok(None);
                }
                if !line.trim().is_empty() {
                    return Ok(Some(line.trim().to_owned()));
                }
            },
        }
    }

    fn hear(&mut self, text: &str) -> Result<(), Error> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("standard output"))
    }

    fn answered(&mut self, answer: &Answer) -> Result<(), Error> {
        self.hear("\n")?;
        let rate = |tokens: usize, seconds: f64| tokens as f64 / seconds.max(1e-9);
        let end = match answer.end {
            End::Said => "",
            End::Tokens => "; cut at --tokens",
            End::Context => "; the context is full",
        };
        self.terminal.note(&format!(
            "{} tokens at {:.1} a second; prompt {} tokens at {:.1}{end}",
            answer.tokens,
            rate(answer.tokens, answer.seconds),
            answer.prompt_tokens,
            rate(answer.prompt_tokens, answer.prompt_seconds)
        ));
        Ok(())
    }

    fn interrupted(&self) -> bool {
        self.terminal.interrupted()
    }
}
