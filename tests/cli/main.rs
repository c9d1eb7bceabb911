//! The program as its users run it: commands, files, exit codes, messages.

mod adapter;
mod bad_input;
mod budget;
mod card;
mod compare;
mod convert;
mod examples;
mod experts;
mod generating;
mod gguf;
mod hub;
mod imatrix;
mod listing;
mod manuals;
mod measuring;
mod mistakes;
mod outer;
mod own_text;
mod planning;
mod proof;
mod quantizing;
mod requirements;
mod run;
mod saying;
mod targets;
mod transforms;
