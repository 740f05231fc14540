//! What tests of the whole stack, and measurements of it, are made with.
//!
//! [`provider::FakeProvider`] stands where OpenAI would. [`browser::Browser`] is Chromium, [`web::Web`] a client with
//! cookies, [`pages`] what every page must hold. [`canary::Canaries`] looks for secrets where none may be.

pub mod browser;
pub mod canary;
pub mod chaos;
pub mod engine;
pub mod house;
pub mod own_engine;
pub mod packages;
pub mod pages;
pub mod paths;
pub mod people;
pub mod provider;
pub mod python;
pub mod stack;
pub mod steps;
pub mod streams;
pub mod wait;
pub mod web;
pub mod workspace;

/// Says something to whoever runs the tests. Not `eprintln!`: what a test that passes prints with that is not shown.
pub fn say(line: impl std::fmt::Display) {
    use std::io::Write;
    // Nobody who could be told that nobody can be told.
    let _ = writeln!(std::io::stderr(), "{line}");
}
