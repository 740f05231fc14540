//! Chats with the person's model, and what is kept of them.

pub mod answer;
pub mod api;
mod store;

pub use store::{Accepted, Chats, Message, Posted, Turn};
