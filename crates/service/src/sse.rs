//! Server-sent events (HTML standard, section 9.2), read as they come: their names and data.

/// The longest event that is kept, in bytes: a sender that never ends one must not fill the memory.
const MAX_EVENT: usize = 1 << 20;

/// An event that has data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Its name; empty when it has none.
    pub name: Vec<u8>,
    /// Its lines of data, with line feeds between them.
    pub data: Vec<u8>,
}

/// Cuts a byte stream into events.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    after_cr: bool,
}

/// An event or line longer than 1 MB.
#[derive(Debug, thiserror::Error)]
#[error("an event is longer than {MAX_EVENT} bytes")]
pub struct TooLong;

impl Parser {
    /// Takes the next bytes; each event that is complete with them.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            match byte {
                // The second half of CR LF, which may come in another packet.
                b'\n' if std::mem::take(&mut self.after_cr) => {}
                b'\r' | b'\n' => {
                    self.after_cr = byte == b'\r';
                    self.end_line(&mut events);
                }
                _ => {
                    self.after_cr = false;
                    if self.line.len() + self.event.data.len() >= MAX_EVENT {
                        return Err(TooLong);
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(events)
    }

    fn end_line(&mut self, events: &mut Vec<Event>) {
        let value = |value: &[u8]| value.strip_prefix(b" ").unwrap_or(value).to_vec();
        if self.line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                events.push(event);
            }
        } else if let Some(data) = self.line.strip_prefix(b"data:") {
            if std::mem::replace(&mut self.has_data, true) {
                self.event.data.push(b'\n');
            }
            self.event.data.extend(value(data));
        } else if let Some(name) = self.line.strip_prefix(b"event:") {
            self.event.name = value(name);
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let text = ": hello\r\n\r\nevent: nothing\n\nevent: x\ndata: {\"a\":\"ü\"}\n\ndata:1\rdata: 2\r\rid: 3\n\ndata: [DONE]\r\n\r\ndata: cut";
        let event = |name: &[u8], data: &[u8]| Event { name: name.into(), data: data.into() };
        let expected = [event(b"x", b"{\"a\":\"\xc3\xbc\"}"), event(b"", b"1\n2"), event(b"", b"[DONE]")];
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let events: Vec<_> = text.as_bytes().chunks(size).flat_map(|part| parser.push(part).unwrap()).collect();
            assert_eq!(events, expected, "cut every {size} bytes");
        }
    }

    #[test]
    fn an_endless_event_is_an_error() {
        let mut parser = Parser::default();
        let line = format!("data: {}\n", "x".repeat(1000));
        assert!((0..2000).any(|_| parser.push(line.as_bytes()).is_err()));
    }
}
