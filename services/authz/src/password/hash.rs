//! Hashing passwords without letting anybody exhaust the machine.

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicU64};

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::{
        Error,
        phc::{Output, ParamsString, PasswordHash, Salt},
    },
};
use clock::Entropy;
use secrecy::{ExposeSecret, SecretString};
use service::Problem;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use unicode_normalization::UnicodeNormalization;

use super::policy;
use crate::refused::{Answer, Refused};

/// How many have a place in each lane beside those at work; the others stand in line for one. Whoever has a place keeps it until
/// the password is hashed: one that was checked does not begin to wait again half-way. So few, because between the two they all
/// write into the database.
const PLACES: usize = 64;
/// How many may stand in line in each lane, for each that works at once, before newcomers are told to come back: a storm of 500
/// on a single core. One in line costs its connection and what it asks for, a
/// form of at most 32 KiB, and neither a core nor the memory of a hash; whoever hangs up leaves the line.
const LINE: usize = 500;
/// argon2id with 19 MiB, two passes, one lane (OWASP's first choice; about 20 ms).
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// How many are hashed at once in each lane at most, on however many cores: what both lanes work in (8 × 19 MiB), and the longest
/// forms in both full lines (4000 × 32 KiB), are then about half of the 512 MiB that this service is given.
const AT_ONCE: usize = 4;

/// What argon2 works in. It is kept, and used by one after the other: given back each time, it would stay with every thread that
/// had it once, and there are many of those.
type Memory = Vec<Block>;

/// Makes and checks password hashes: as many at once as there are cores, a bounded line behind them, first come, first served, and
/// one lane each for signing in and signing up, so that a flood of one leaves the other alone.
pub(crate) struct Passwords {
    entropy: Entropy,
    sign_in: Lane,
    sign_up: Lane,
    /// The hash of a password nobody has: checked when there is no account, so that it takes as long as when there is.
    dummy: String,
    checked: Arc<AtomicU64>,
}

/// A new password that the policy takes, in NFC, and its place in the lane.
pub(crate) struct NewPassword {
    password: SecretString,
    place: OwnedSemaphorePermit,
}

/// A place in a lane, until it is dropped.
pub(crate) struct Place {
    purpose: Purpose,
    permit: OwnedSemaphorePermit,
}

/// Which line a piece of work stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    SignIn,
    SignUp,
}

struct Lane {
    /// Waiting for a place.
    line: Semaphore,
    /// Having a place.
    admitted: Arc<Semaphore>,
    /// Working.
    working: Arc<Semaphore>,
    /// What nobody works in now; all in all no more than may work at once.
    spare: Arc<Mutex<Vec<Memory>>>,
}

impl Lane {
    fn new(cores: usize) -> Self {
        Self {
            line: Semaphore::new(cores * LINE),
            admitted: Arc::new(Semaphore::new(cores + PLACES)),
            working: Arc::new(Semaphore::new(cores)),
            spare: Arc::default(),
        }
    }

    /// A place in the lane, when it is its turn. Dropped before, it has left the line.
    ///
    /// # Errors
    /// 503 `busy`, at once, when the line is full.
    async fn admit(&self) -> Answer<OwnedSemaphorePermit> {
        let _in_line = self.line.try_acquire().map_err(|_| busy("the line for hashing is full"))?;
        let place = Arc::clone(&self.admitted).acquire_owned().await;
        place.map_err(|_| busy("the line for hashing is closed"))
    }

    /// Runs `work` on a blocking thread when it is its turn, and gives the place back with what came of it.
    async fn run<T: Send + 'static>(
        &self,
        place: OwnedSemaphorePermit,
        work: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Answer<(T, OwnedSemaphorePermit)> {
        let working = Arc::clone(&self.working).acquire_owned().await;
        let working = working.map_err(|_| busy("the line for hashing is closed"))?;
        let spare = Arc::clone(&self.spare);
        let job = tokio::task::spawn_blocking(move || {
            // Both held by the work, not by the caller, who may hang up while the work goes on.
            let _working = working;
            let mut memory = spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            let outcome = work(&mut memory);
            spare.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
            (outcome, place)
        });
        job.await.map_err(|error| Refused(Problem::internal(error)))
    }
}

fn busy(cause: &'static str) -> Refused {
    Problem::new(
        http::StatusCode::SERVICE_UNAVAILABLE,
        "busy",
        "Too many people are signing in or up at this moment. Try again in a few seconds.",
    )
    .retry_after(2)
    .cause(anyhow::anyhow!(cause))
    .into()
}

impl Passwords {
    /// Prepares the dummy hash: takes as long as one hash.
    ///
    /// # Errors
    /// When argon2 fails, which with these parameters means that there is no memory.
    pub fn new(entropy: Entropy) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(AT_ONCE);
        let dummy = hash(&SecretString::from(entropy.token()), &entropy.bytes(), &mut Memory::new())?;
        let checked = Arc::new(AtomicU64::new(0));
        Ok(Self { entropy, sign_in: Lane::new(cores), sign_up: Lane::new(cores), dummy, checked })
    }

    /// Checks a new password against the policy, when it is its turn. What it gives takes a place in the lane until it is hashed or
    /// dropped.
    ///
    /// # Errors
    /// 422 for what the policy refuses; 503 `busy`.
    pub async fn check(&self, password: SecretString, own_words: Vec<String>) -> Answer<NewPassword> {
        let check = move |_: &mut Memory| {
            let password = normal(&password);
            policy::check(password.expose_secret(), &own_words).map(|()| password)
        };
        let (outcome, place) = self.sign_up.run(self.sign_up.admit().await?, check).await?;
        let refused = |refusal: policy::PolicyError| Problem::field("password", refusal.code(), refusal.to_string());
        Ok(NewPassword { password: outcome.map_err(refused)?, place })
    }

    /// Hashes a new password: a PHC string. However many have come since it was checked, its place is its own.
    ///
    /// # Errors
    /// 503 when there is no memory for it.
    pub async fn hash(&self, NewPassword { password, place }: NewPassword) -> Answer<String> {
        let salt: [u8; 16] = self.entropy.bytes();
        let (outcome, _) = self.sign_up.run(place, move |memory: &mut Memory| hash(&password, &salt, memory)).await?;
        outcome.map_err(|error| Problem::unavailable(error).into())
    }

    /// Both: checks a new password and hashes it.
    ///
    /// # Errors
    /// As [`Passwords::check`] and [`Passwords::hash`].
    pub async fn set(&self, password: SecretString, own_words: Vec<String>) -> Answer<String> {
        let password = self.check(password, own_words).await?;
        self.hash(password).await
    }

    /// Stands in line for a place to have a password compared.
    ///
    /// # Errors
    /// 503 `busy`.
    pub async fn line_up(&self, purpose: Purpose) -> Answer<Place> {
        Ok(Place { purpose, permit: self.lane(purpose).admit().await? })
    }

    /// Whether `password` is the one of `hash`. Without a hash it is not, and that takes as long.
    ///
    /// # Errors
    /// 500 for a hash that is none, or when there is no memory for it.
    pub async fn verify(&self, place: Place, password: SecretString, hash: Option<String>) -> Answer<bool> {
        let exists = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.dummy.clone());
        let checked = Arc::clone(&self.checked);
        let compare = move |memory: &mut Memory| {
            checked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            matches(&normal(&password), &hash, memory)
        };
        let (fits, _) = self.lane(place.purpose).run(place.permit, compare).await?;
        fits.map(|fits| fits && exists).map_err(|error| Problem::internal(error).into())
    }

    fn lane(&self, purpose: Purpose) -> &Lane {
        match purpose {
            Purpose::SignIn => &self.sign_in,
            Purpose::SignUp => &self.sign_up,
        }
    }

    /// Keeps a lane from working until the permit is dropped.
    #[cfg(test)]
    pub async fn hold(&self, purpose: Purpose) -> tokio::sync::OwnedSemaphorePermit {
        let cores = self.lane(purpose).working.available_permits();
        Arc::clone(&self.lane(purpose).working).acquire_many_owned(u32::try_from(cores).unwrap()).await.unwrap()
    }

    /// How many places of a lane are free.
    #[cfg(test)]
    pub fn places(&self, purpose: Purpose) -> usize {
        self.lane(purpose).admitted.available_permits()
    }

    /// How many more may stand in line for a place of a lane.
    #[cfg(test)]
    pub fn room(&self, purpose: Purpose) -> usize {
        self.lane(purpose).line.available_permits()
    }

    /// Stands in line as often as there is room, until the permit is dropped.
    #[cfg(test)]
    pub fn fill(&self, purpose: Purpose) -> tokio::sync::SemaphorePermit<'_> {
        self.lane(purpose).line.try_acquire_many(u32::try_from(self.room(purpose)).unwrap()).unwrap()
    }

    /// How many passwords were compared so far; unknown people's count too.
    #[cfg(test)]
    pub fn checked(&self) -> u64 {
        self.checked.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// NFC (RFC 8265, section 4.2), so that a password typed on another keyboard is the same password.
fn normal(password: &SecretString) -> SecretString {
    password.expose_secret().nfc().collect::<String>().into()
}

/// The PHC string of a password.
fn hash(password: &SecretString, salt: &[u8; 16], memory: &mut Memory) -> Result<String, Error> {
    let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
    let argon2 = Argon2::new(algorithm, version, Params::new(MEMORY_KIB, PASSES, 1, None)?);
    let hash = PasswordHash {
        algorithm: algorithm.ident(),
        version: Some(version.into()),
        params: ParamsString::try_from(argon2.params())?,
        salt: Some(Salt::new(salt)?),
        hash: Some(output(&argon2, password, salt, memory)?),
    };
    Ok(hash.to_string())
}

fn matches(password: &SecretString, hash: &str, memory: &mut Memory) -> anyhow::Result<bool> {
    let malformed = || anyhow::anyhow!("a stored password hash is malformed");
    let hash = PasswordHash::new(hash).map_err(|_| malformed())?;
    let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else { return Err(malformed()) };
    let mut work = || {
        let algorithm = Algorithm::try_from(hash.algorithm.as_str())?;
        let version = hash.version.map(Version::try_from).transpose()?.unwrap_or_default();
        output(&Argon2::new(algorithm, version, Params::try_from(&hash)?), password, salt, memory)
    };
    // Compared in constant time, as outputs are.
    let found: Result<Output, Error> = work();
    found.map(|found| found == *expected).map_err(|error| anyhow::anyhow!("argon2: {error}"))
}

/// What argon2 makes of a password, worked out in this memory.
fn output(argon2: &Argon2<'_>, password: &SecretString, salt: &[u8], memory: &mut Memory) -> Result<Output, Error> {
    let mut buffer = [0; Output::MAX_LENGTH];
    let length = argon2.params().output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN);
    let out = buffer.get_mut(..length).ok_or(Error::OutputSize)?;
    let blocks = argon2.params().block_count();
    memory.try_reserve_exact(blocks.saturating_sub(memory.len())).map_err(|_| Error::OutOfMemory)?;
    memory.resize(blocks, Block::new());
    argon2.hash_password_into_with_memory(password.expose_secret().as_bytes(), salt, out, &mut **memory)?;
    Output::new(out).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Poll};

    use super::*;

    async fn verify(passwords: &Passwords, purpose: Purpose, password: &str, hash: Option<String>) -> Answer<bool> {
        passwords.verify(passwords.line_up(purpose).await?, password.into(), hash).await
    }

    #[tokio::test]
    async fn hashes_are_argon2id_with_the_parameters_and_a_salt_of_their_own() {
        let passwords = Passwords::new(Entropy::system()).unwrap();
        let password = || SecretString::from("плотина of seven sticks");
        let one = passwords.set(password(), vec![]).await.unwrap();
        let two = passwords.set(password(), vec![]).await.unwrap();
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        assert_ne!(one, two);
        assert!(verify(&passwords, Purpose::SignIn, "плотина of seven sticks", Some(one.clone())).await.unwrap());
        assert!(!verify(&passwords, Purpose::SignIn, "плотина of seven stickS", Some(one)).await.unwrap());
        assert!(!verify(&passwords, Purpose::SignIn, "плотина of seven sticks", None).await.unwrap());
    }

    #[tokio::test]
    async fn the_same_letters_composed_differently_are_the_same_password() {
        let passwords = Passwords::new(Entropy::system()).unwrap();
        let composed = passwords.set("caf\u{e9} by the river bank".into(), vec![]).await.unwrap();
        assert!(verify(&passwords, Purpose::SignIn, "cafe\u{301} by the river bank", Some(composed)).await.unwrap());
    }

    #[test]
    fn what_is_worked_out_here_is_argon2s_and_the_other_way_round() {
        use argon2::{PasswordHasher, PasswordVerifier};

        let (password, mut memory) = (SecretString::from("плотина of seven sticks"), Memory::new());
        let ours = hash(&password, &[7; 16], &mut memory).unwrap();
        let bytes = password.expose_secret().as_bytes();
        Argon2::default().verify_password(bytes, &PasswordHash::new(&ours).unwrap()).unwrap();
        // Of another size, and in memory that is still full of the other.
        for kib in [32, 64 * 1024] {
            let params = Params::new(kib, 1, 2, Some(24)).unwrap();
            let argon2 = Argon2::new(Algorithm::Argon2i, Version::V0x10, params);
            let theirs = argon2.hash_password_with_salt(bytes, &[9; 16]).unwrap().to_string();
            assert!(matches(&password, &theirs, &mut memory).unwrap());
            assert!(!matches(&"another".into(), &theirs, &mut memory).unwrap());
            assert!(matches(&password, &ours, &mut memory).unwrap());
        }
        assert!(matches(&password, "$argon2id$v=19$m=19456,t=2,p=1", &mut memory).is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn however_many_come_there_is_memory_for_those_who_work_at_once() {
        let passwords = Passwords::new(Entropy::system()).unwrap();
        let at_once = passwords.sign_in.working.available_permits();
        assert!(at_once <= AT_ONCE);
        let all = (0..10 * at_once).map(|_| verify(&passwords, Purpose::SignIn, "x", None));
        for outcome in futures_util::future::join_all(all).await {
            assert!(!outcome.unwrap());
        }
        let kept = passwords.sign_in.spare.lock().unwrap().len();
        assert!((1..=at_once).contains(&kept), "{kept}");
    }

    /// All the places that a lane has free.
    fn take(lane: &Lane) -> OwnedSemaphorePermit {
        let free = u32::try_from(lane.admitted.available_permits()).unwrap();
        Arc::clone(&lane.admitted).try_acquire_many_owned(free).unwrap()
    }

    #[tokio::test]
    async fn a_full_line_refuses_at_once_and_the_other_lane_goes_on() {
        let passwords = Passwords::new(Entropy::system()).unwrap();
        let in_line = passwords.fill(Purpose::SignIn);
        let refused = verify(&passwords, Purpose::SignIn, "x", None).await.unwrap_err();
        assert_eq!(refused.0.code(), "busy");
        assert!(!verify(&passwords, Purpose::SignUp, "x", None).await.unwrap());
        drop(in_line);
        assert!(!verify(&passwords, Purpose::SignIn, "x", None).await.unwrap());
    }

    #[tokio::test]
    async fn whoever_finds_every_place_taken_waits_for_one_and_leaves_the_line_when_given_up() {
        let passwords = Passwords::new(Entropy::system()).unwrap();
        let (room, taken) = (passwords.room(Purpose::SignIn), take(&passwords.sign_in));
        let mut waiting = Box::pin(verify(&passwords, Purpose::SignIn, "x", None));
        let mut gone = Box::pin(verify(&passwords, Purpose::SignIn, "x", None));
        poll_fn(|cx| {
            assert!(waiting.as_mut().poll(cx).is_pending() && gone.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        assert_eq!(passwords.room(Purpose::SignIn), room - 2);
        drop(gone);
        assert_eq!(passwords.room(Purpose::SignIn), room - 1);
        drop(taken);
        assert!(!waiting.await.unwrap());
        assert_eq!(passwords.room(Purpose::SignIn), room);
    }

    #[tokio::test]
    async fn a_password_that_was_checked_is_hashed_however_many_are_waiting_by_then() {
        let passwords = Passwords::new(Entropy::system()).unwrap();
        let all = passwords.places(Purpose::SignUp);
        let new = passwords.check("плотина of seven sticks".into(), vec![]).await.unwrap();
        let (others, in_line) = (take(&passwords.sign_up), passwords.fill(Purpose::SignUp));
        let Err(refused) = passwords.check("плотина of eight sticks".into(), vec![]).await else {
            panic!("a place")
        };
        assert_eq!(refused.0.code(), "busy");
        passwords.hash(new).await.unwrap();
        assert_eq!(passwords.places(Purpose::SignUp), 1, "the place is free again");
        drop((others, in_line));
        // Also that of one that is given up.
        drop(passwords.check("плотина of seven sticks".into(), vec![]).await.unwrap());
        assert!(passwords.check("short".into(), vec![]).await.is_err());
        assert_eq!(passwords.places(Purpose::SignUp), all);
    }
}
