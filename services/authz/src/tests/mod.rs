//! authz as its callers meet it: the whole router, on every database there is.

mod clients;
mod goodbyes;
mod hand_off;
mod harness;
mod keys;
mod new_instance;
mod operator;
mod own_account;
mod process;
mod secrets;
mod sessions;
mod signing_in;
mod signing_up;
mod storage;
mod storm;
mod suspension;
mod token_endpoint;
