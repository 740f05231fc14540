//! The router as its neighbours meet it: real sockets, raw clients, fake neighbours.

mod harness;

mod away;
mod doors;
mod feed;
mod gate;
mod internal;
mod pages;
mod pass;
mod sleep;
mod smuggling;
mod time;
mod websocket;
