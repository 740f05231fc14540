//! The words in which `beaver attack` and the program inside of its containers agree.
//!
//! The program does what it is told, prints one [`Report`] a line, and knows nothing of what should happen: the same
//! [`Attempt`]s are made in a hostile instance, where none may succeed, and as its control where they are allowed, where
//! each must. Whatever it does is bounded by itself, in count, bytes and time.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// What a container is to do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Plan {
    /// What must be there first: only in controls, which have a world of their own.
    pub prepare: Vec<Prepared>,
    /// What is tried, in this order.
    pub attempts: Vec<Attempt>,
}

/// Something that is put in place before anything is tried.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prepared {
    /// A file with this in it, and the folders above.
    File(PathBuf, String),
    /// A Unix socket that somebody listens on, and the folders above.
    Listener(PathBuf),
    /// /proc and /sys as they are, without what the engine puts over them.
    System,
}

/// Something to try.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attempt {
    /// A TCP connection.
    Tcp(SocketAddr),
    /// A question to a name server, by UDP, and its answer.
    Dns(SocketAddr),
    /// A connection to an abstract Unix socket.
    Abstract(String),
    /// A raw IP socket.
    RawSocket,
    /// A socket for whole frames, as ARP needs one.
    PacketSocket,
    /// A network interface beside the loopback.
    Interface,
    /// A connection to a Unix socket.
    Unix(PathBuf),
    /// `CONNECT host:port` at an egress door.
    Connect(PathBuf, String),
    /// `GET http://host:port/` at an egress door.
    Absolute(PathBuf, String),
    /// Bytes for a door, as they are. Done when any answer to them is a success.
    Say(PathBuf, String),
    /// A request whose header goes on for ever, or so many KiB. Done when all of it is taken, or it is a success.
    EndlessHeader(PathBuf, u32),
    /// That something is there.
    See(PathBuf),
    /// That a file names this.
    Mention(PathBuf, String),
    /// A new file in a folder; it is removed again.
    Create(PathBuf),
    /// Removing a file.
    Remove(PathBuf),
    /// Opening a file for reading.
    Read(PathBuf),
    /// Opening a file for writing. Nothing is written.
    Write(PathBuf),
    /// A capability in any of this process's sets.
    Capability,
    /// New privileges, which a program with more of them could give.
    NewPrivileges,
    /// System calls without a filter.
    Unfiltered,
    /// Becoming root through this program, which is root's and has the set-user-id bit.
    SetUid(PathBuf),
    /// Becoming root by asking.
    BecomeRoot,
    /// A file system of its own on this folder.
    Mount(PathBuf),
    /// Name spaces of its own, in which it would be root.
    Unshare,
    /// Another root folder.
    Chroot(PathBuf),
    /// A device file, here.
    Device(PathBuf),
    /// The host's name.
    HostName,
    /// A kernel module.
    Module,
    /// So many processes at once.
    Processes(u32),
    /// So many bytes of memory, in a process of its own.
    Memory(u64),
    /// So many open files.
    Files(u64),
    /// So many bytes in a folder, removed again.
    Fill(PathBuf, u64),
    /// So many files in a folder, removed again.
    ManyFiles(PathBuf, u32),
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It succeeded.
    Done,
    /// It was refused.
    Refused,
    /// It could not be tried.
    Broken,
}

/// One line of what the program says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Which attempt of the plan, from 0.
    pub attempt: usize,
    /// What came of it.
    pub outcome: Outcome,
    /// In a few words: what was answered, or the operating system's reason.
    pub what: String,
}

/// What an instance's `http.sock` is, or does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Behaviour {
    /// It answers every request with this.
    Honest(String),
    /// It is a link to this.
    Link(String),
    /// It is a fifo.
    Fifo,
    /// It is a folder.
    Folder,
    /// It is a file that claims to be a gibibyte.
    HugeFile,
    /// It takes connections and says nothing.
    Silent,
    /// It says a byte of a header a second, for ever.
    Slow,
    /// It answers with a header without an end.
    EndlessHeader,
    /// It answers with a body without an end.
    EndlessBody,
    /// It answers each request twice, the second time with this.
    TwoAnswers(String),
    /// It answers with a body of another length than it says, of this.
    WrongLength(String),
    /// It answers with noise.
    Garbage,
    /// It claims to speak HTTP/2.
    Http2,
    /// It hangs up at once.
    HangsUp,
}

/// How a container takes all that it can, for how long.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rage {
    /// Of what.
    pub fury: Fury,
    /// For so many seconds.
    pub seconds: u64,
}

/// What a container can take all of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fury {
    /// Processes that make processes.
    Fork,
    /// So many bytes of memory, again and again.
    Memory(u64),
    /// The processor, with so many threads.
    Spin(usize),
    /// The log.
    Log,
    /// Connections to the outside.
    Connections {
        /// Its egress door.
        door: PathBuf,
        /// `host:port`.
        target: String,
        /// What is said there; the answer is never read.
        say: String,
    },
    /// Its own door, behind which it behaves so.
    Door(Behaviour),
}

/// What came of a [`Rage`]; the last line that the container says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raged {
    /// How often it got what it wanted.
    pub done: u64,
    /// How often there was no more to be had.
    pub refused: u64,
}

/// The line that says that whatever was asked for is in place.
pub const READY: &str = "ready";

/// What a control's world is: every address there is, all of it here.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct World {
    /// Ports with somebody who answers every request.
    pub ports: Vec<u16>,
    /// The name of an abstract socket.
    pub abstract_name: String,
}

/// Where an honest client connects to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum To {
    /// A TCP port.
    Address(SocketAddr),
    /// The Unix socket at a path, wherever a link there leads.
    Path(PathBuf),
}

/// A request of an honest client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// Where.
    pub to: To,
    /// `GET`, `POST`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// What is shown as the bearer's token; it comes on standard input and is in no argument.
    pub token: String,
    /// JSON; none for an empty one.
    pub body: String,
    /// Milliseconds until it is given up.
    pub patience_ms: u64,
}

/// What it was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The status; 0 when there was no answer.
    pub status: u16,
    /// At most [`MAX_ANSWER`] bytes of the body, or why there was no answer.
    pub body: String,
}

/// The most of an answer that is kept, in bytes.
pub const MAX_ANSWER: usize = 64 << 10;
