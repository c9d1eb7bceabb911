//! The program as its users run it: commands, files, exit codes, messages.

mod bad_input;
mod listing;
mod measuring;
mod proof;
mod quantizing;
mod run;
