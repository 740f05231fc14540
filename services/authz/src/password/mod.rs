//! Passwords: which are taken, and how they are kept.

mod breached;
mod hash;
mod policy;

pub(crate) use hash::{Passwords, Purpose};
pub(crate) use policy::own_words;
