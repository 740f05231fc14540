//! One instance as its neighbours meet it: a fake authz and a fake egress on its sockets, a fake provider on loopback.

mod archive;
mod chat;
mod fakes;
mod gateway;
mod hand_off;
mod history;
mod house;
mod process;
mod settings_page;
mod tls;
