//! Where one HTTP/1 message ends and the next begins (RFC 9112), read so strictly that nobody behind can read it
//! otherwise.
//!
//! hyper is lenient as RFC 9112 allows it to be: it takes a bare LF, two Hosts, and Content-Length beside
//! Transfer-Encoding. Each of these is how requests are smuggled past a proxy. So every byte goes through here before
//! hyper sees it, and what has more than one reading goes no further. No input or output happens here.

/// The largest request line, in bytes.
const MAX_LINE: usize = 8 << 10;
/// The largest head, and the largest trailer section, in bytes.
pub const MAX_HEAD: usize = 32 << 10;
/// The most header lines.
pub const MAX_HEADERS: usize = 100;
/// Sixteen digits would overflow; no chunk is that long.
const MAX_CHUNK_DIGITS: usize = 8;

/// Why a message goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is no HTTP/1 message, or one with more than one reading: 400.
    Malformed,
    /// More or longer header lines than are taken: 431.
    HeadTooLarge,
    /// A longer request line than is taken: 414.
    LineTooLong,
    /// Another version than 1.0 and 1.1: 505.
    Version,
    /// Another transfer coding than chunked: 501.
    Coding,
    /// CONNECT and TRACE: 405.
    Method,
}

impl Refusal {
    /// Each refusal, in a fixed order.
    pub const ALL: [Self; 6] =
        [Self::Malformed, Self::HeadTooLarge, Self::LineTooLong, Self::Version, Self::Coding, Self::Method];

    /// The status it is answered with.
    pub fn status(self) -> http::StatusCode {
        use http::StatusCode;
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::LineTooLong => StatusCode::URI_TOO_LONG,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

/// What to do with the bytes at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many of them are good, at least one.
    Pass(usize),
    /// It takes more of them to tell.
    More,
    /// The request was one to switch protocols: nothing may pass until its answer says what these bytes are.
    Hold,
    /// They, and whatever comes, go no further.
    Refuse(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a head; so many bytes of it were looked at.
    Head { seen: usize },
    /// In a body of known length, so much of which is to come.
    Sized(u64),
    /// At the line before a chunk.
    ChunkSize,
    /// In a chunk, so much of which is to come.
    Chunk(u64),
    /// At the end of a chunk's line.
    ChunkEnd,
    /// After the last chunk; so many bytes of trailers were passed.
    Trailers(usize),
    /// After a request to switch protocols.
    Switching,
    /// Refused.
    Refused(Refusal),
}

/// Follows one connection's requests.
#[derive(Debug)]
pub struct Framing {
    state: State,
}

impl Default for Framing {
    fn default() -> Self {
        Self { state: State::Head { seen: 0 } }
    }
}

impl Framing {
    /// Looks at the bytes that follow the last that passed.
    pub fn step(&mut self, bytes: &[u8]) -> Step {
        match self.try_step(bytes) {
            Ok(step) => step,
            Err(refusal) => {
                self.state = State::Refused(refusal);
                Step::Refuse(refusal)
            }
        }
    }

    /// Whether what comes next is a body's, and so many bytes of it may pass without being looked at.
    pub fn free_bytes(&self) -> u64 {
        match self.state {
            State::Sized(left) | State::Chunk(left) => left,
            _ => 0,
        }
    }

    /// Says that so many of the free bytes have passed.
    pub fn passed_free(&mut self, n: u64) {
        match &mut self.state {
            State::Sized(left) | State::Chunk(left) => *left = left.saturating_sub(n),
            _ => {}
        }
        match self.state {
            State::Sized(0) => self.state = State::Head { seen: 0 },
            State::Chunk(0) => self.state = State::ChunkEnd,
            _ => {}
        }
    }

    /// Whether a body is under way: begun and not ended.
    pub fn in_body(&self) -> bool {
        matches!(
            self.state,
            State::Sized(_) | State::ChunkSize | State::Chunk(_) | State::ChunkEnd | State::Trailers(_)
        )
    }

    /// Whether the last request was one to switch protocols, and its answer is not known yet.
    pub fn is_switching(&self) -> bool {
        self.state == State::Switching
    }

    fn try_step(&mut self, bytes: &[u8]) -> Result<Step, Refusal> {
        match self.state {
            State::Refused(refusal) => Err(refusal),
            _ if bytes.is_empty() => Ok(Step::More),
            State::Head { seen } => self.head(bytes, seen),
            State::Sized(left) | State::Chunk(left) => {
                let n = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.passed_free(n as u64);
                Ok(Step::Pass(n))
            }
            State::ChunkSize => {
                let Some(line) = line(bytes, MAX_CHUNK_DIGITS)? else { return Ok(Step::More) };
                let size = chunk_size(line)?;
                self.state = if size == 0 { State::Trailers(0) } else { State::Chunk(size) };
                Ok(Step::Pass(line.len() + 2))
            }
            State::ChunkEnd => {
                let Some(line) = line(bytes, 0)? else { return Ok(Step::More) };
                self.state = State::ChunkSize;
                Ok(Step::Pass(line.len() + 2))
            }
            State::Trailers(passed) => {
                let Some(line) = line(bytes, MAX_HEAD - passed.min(MAX_HEAD))? else { return Ok(Step::More) };
                if line.is_empty() {
                    self.state = State::Head { seen: 0 };
                } else {
                    field(line)?;
                    self.state = State::Trailers(passed + line.len() + 2);
                }
                Ok(Step::Pass(line.len() + 2))
            }
            State::Switching => Ok(Step::Hold),
        }
    }

    fn head(&mut self, bytes: &[u8], seen: usize) -> Result<Step, Refusal> {
        let mut at = seen;
        while let Some(found) = memchr::memchr(b'\n', &bytes[at..]) {
            let end = at + found;
            if end == 0 || bytes[end - 1] != b'\r' {
                return Err(Refusal::Malformed);
            }
            if end == 1 {
                // An empty line before the request.
                return Err(Refusal::Malformed);
            }
            if end >= 3 && bytes[end - 2] == b'\n' {
                if end + 1 > MAX_HEAD {
                    return Err(Refusal::HeadTooLarge);
                }
                // Without the empty line and the CRLF before it.
                self.state = after(&bytes[..end - 3])?;
                return Ok(Step::Pass(end + 1));
            }
            at = end + 1;
        }
        let first_line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
        if first_line > MAX_LINE {
            return Err(Refusal::LineTooLong);
        }
        if bytes.len() > MAX_HEAD {
            return Err(Refusal::HeadTooLarge);
        }
        self.state = State::Head { seen: at };
        Ok(Step::More)
    }
}

/// The line that the bytes begin with, if its CRLF is there; it may have `max` bytes.
fn line(bytes: &[u8], max: usize) -> Result<Option<&[u8]>, Refusal> {
    match memchr::memchr(b'\n', &bytes[..bytes.len().min(max + 2)]) {
        Some(end) if end > 0 && bytes[end - 1] == b'\r' => Ok(Some(&bytes[..end - 1])),
        Some(_) => Err(Refusal::Malformed),
        None if bytes.len() >= max + 2 => Err(Refusal::Malformed),
        None => Ok(None),
    }
}

/// A chunk's size: hexadecimal digits and nothing else. Extensions have no use here, and readers differ over their end.
fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    if line.is_empty() || !line.iter().all(u8::is_ascii_hexdigit) {
        return Err(Refusal::Malformed);
    }
    let digits = std::str::from_utf8(line).map_err(|_| Refusal::Malformed)?;
    u64::from_str_radix(digits, 16).map_err(|_| Refusal::Malformed)
}

/// A header line's name and value, without the space around the value (RFC 9112, section 5).
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let colon = memchr::memchr(b':', line).ok_or(Refusal::Malformed)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    // A name of token characters alone: no space before the colon, and no folded line, which begins with one.
    if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
        return Err(Refusal::Malformed);
    }
    if value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) || line.contains(&b'\r') {
        return Err(Refusal::Malformed);
    }
    Ok((name, value))
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// What follows this head, if it is one that can only be read in one way.
fn after(head: &[u8]) -> Result<State, Refusal> {
    let mut lines = head.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request_line = lines.next().unwrap_or_default();
    let http_1_1 = request(request_line)?;
    let (mut host, mut length, mut chunked, mut upgrade) = (false, None, false, false);
    for (n, line) in lines.enumerate() {
        if n >= MAX_HEADERS {
            return Err(Refusal::HeadTooLarge);
        }
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            if std::mem::replace(&mut host, true) || value.is_empty() || !value.iter().all(u8::is_ascii_graphic) {
                return Err(Refusal::Malformed);
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            if length.is_some() || value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
                return Err(Refusal::Malformed);
            }
            let digits = std::str::from_utf8(value).map_err(|_| Refusal::Malformed)?;
            length = Some(digits.parse::<u64>().map_err(|_| Refusal::Malformed)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if std::mem::replace(&mut chunked, true) || !http_1_1 || value.is_empty() {
                return Err(Refusal::Malformed);
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::Coding);
            }
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            upgrade = true;
        }
    }
    if http_1_1 && !host {
        return Err(Refusal::Malformed);
    }
    match (length, chunked) {
        (Some(_), true) => Err(Refusal::Malformed),
        (None, true) => Ok(State::ChunkSize),
        (Some(length), false) if length > 0 => Ok(State::Sized(length)),
        _ if upgrade => Ok(State::Switching),
        _ => Ok(State::Head { seen: 0 }),
    }
}

/// Checks a request line; whether its version is 1.1.
fn request(line: &[u8]) -> Result<bool, Refusal> {
    if line.len() > MAX_LINE {
        return Err(Refusal::LineTooLong);
    }
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::Malformed);
    };
    if method.is_empty() || method.len() > 32 || !method.iter().all(|b| is_token(*b)) {
        return Err(Refusal::Malformed);
    }
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) || target.contains(&b'#') {
        return Err(Refusal::Malformed);
    }
    let http_1_1 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        other if other.starts_with(b"HTTP/") => return Err(Refusal::Version),
        _ => return Err(Refusal::Malformed),
    };
    if matches!(method, b"CONNECT" | b"TRACE") || method == super::guard::REFUSED.as_bytes() {
        return Err(Refusal::Method);
    }
    Ok(http_1_1)
}

impl Framing {
    /// Says that the answer to a request to switch protocols was no: what was held is the next request.
    pub fn not_switched(&mut self) {
        if self.state == State::Switching {
            self.state = State::Head { seen: 0 };
        }
    }
}

#[cfg(test)]
mod tests;
