use proptest::prelude::*;

use super::*;

/// What comes of these bytes, given in these pieces: how many passed, and the refusal.
fn run(pieces: &[&[u8]]) -> (usize, Option<Refusal>) {
    let (mut framing, mut held, mut passed) = (Framing::default(), Vec::new(), 0);
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            match framing.step(&held) {
                Step::Pass(n) => {
                    assert!(n > 0 && n <= held.len());
                    held.drain(..n);
                    passed += n;
                }
                Step::More => break,
                Step::Hold => framing.not_switched(),
                Step::Refuse(refusal) => return (passed, Some(refusal)),
            }
            if held.is_empty() {
                break;
            }
        }
    }
    (passed, None)
}

const GOOD: &[&str] = &[
    "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\nGET / H",
    "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\n\n\r\n0\r\nx: 1\r\ny:\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "GET /ws HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n\r\n",
    "GET http://a/ HTTP/1.1\r\nhost: a\r\nx:\t caf\u{e9} \t\r\n\r\n",
];

#[test]
fn messages_pass_whole_one_after_the_other() {
    for message in GOOD {
        assert_eq!(run(&[message.as_bytes()]), (message.len(), None), "{message:?}");
    }
    let all = GOOD.concat();
    assert_eq!(run(&[all.as_bytes()]), (all.len(), None));
}

#[test]
fn a_refusal_lasts() {
    let mut framing = Framing::default();
    assert_eq!(framing.step(b"GET / HTTP/1.1\n"), Step::Refuse(Refusal::Malformed));
    assert_eq!(framing.step(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"), Step::Refuse(Refusal::Malformed));
    assert_eq!(framing.step(b""), Step::Refuse(Refusal::Malformed));
}

#[test]
fn bytes_that_pass_unseen_are_counted_like_the_others() {
    let mut framing = Framing::default();
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n";
    assert_eq!((framing.step(head), framing.free_bytes()), (Step::Pass(head.len()), 10));
    framing.passed_free(4);
    assert_eq!(framing.step(b"567890GET"), Step::Pass(6));
    assert!(!framing.in_body());
    assert_eq!(framing.step(b"GET"), Step::More);
}

proptest! {
    /// However the bytes are cut, what comes of them is the same: no decision hangs on where a packet ends.
    #[test]
    fn where_packets_end_does_not_matter(
        parts in proptest::collection::vec(
            prop_oneof![
                proptest::sample::select(GOOD.to_vec()).prop_map(|m| m.as_bytes().to_vec()),
                proptest::sample::select(vec![
                    "GET / HTTP/1.1\r\n", "host: a\r\n", "\r\n", "\n", "\r", "content-length: 3\r\n", "transfer-encoding: chunked\r\n",
                    "3\r\nabc\r\n", "0\r\n\r\n", "0\r\n", "x : 1\r\n", " folded\r\n", "3;a\r\n", "upgrade: websocket\r\n", "abc", "\0",
                ]).prop_map(|m| m.as_bytes().to_vec()),
                proptest::collection::vec(any::<u8>(), 0..4),
            ],
            0..8,
        ),
        cuts in proptest::collection::vec(1_usize..9, 1..200),
    ) {
        let bytes = parts.concat();
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        prop_assert_eq!(run(&pieces), run(&[&bytes]));
    }
}
