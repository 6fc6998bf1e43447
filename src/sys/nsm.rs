//! The Nitro Secure Module: the device that measures an enclave and attests what it measured.
//!
//! The kernel waits up to two minutes for an answer of the module, and this process must not: requests are
//! made by a thread of its own, and whoever asks waits for a bounded time.

use std::{
    collections::BTreeMap,
    fs::{OpenOptions, Permissions},
    io,
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::Path,
    sync::mpsc::{SyncSender, sync_channel},
    time::Duration,
};

use aws_nitro_enclaves_nsm_api::{
    api::{ErrorCode, Request, Response},
    driver::nsm_process_request,
};
use enclave_protocol::digest::hex;

const DEVICE: &str = "/dev/nsm";
/// The register that the manifest's digest goes into. Registers below 16 are the hypervisor's.
pub const MANIFEST_PCR: u16 = 16;
/// Registers that say what the machine is: image, bootstrap, application, role, instance, signer.
const IDENTITY_PCRS: [u16; 6] = [0, 1, 2, 3, 4, 8];
/// Of these, the ones that are told even when nothing was measured into them.
const IMAGE_PCRS: [u16; 3] = [0, 1, 2];

/// How long an answer may take. The module answers within milliseconds; the only requests are made before
/// anything runs.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What the module did not do.
#[derive(Debug, thiserror::Error)]
pub enum NsmError {
    /// It refused.
    #[error("the Nitro Secure Module refuses to {what}: {code:?}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its answer.
        code: ErrorCode,
    },
    /// It answered something else.
    #[error("the Nitro Secure Module did not answer to {0} but to something else")]
    Confused(String),
    /// It does not answer.
    #[error("the Nitro Secure Module has not answered within {} s", ANSWER_MAX.as_secs())]
    Silent,
}

/// A request, and where its answer goes.
type Asked = (Request, SyncSender<Response>);

/// The open device, on a thread of its own. It is the supervisor's alone.
#[derive(Debug)]
pub struct Nsm(SyncSender<Asked>);

#[expect(clippy::wildcard_enum_match_arm, reason = "whatever else a module may answer is no answer")]
impl Nsm {
    /// Opens the device and closes it to everybody but root.
    pub fn open() -> io::Result<Self> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        std::fs::set_permissions(Path::new(DEVICE), Permissions::from_mode(0o600))?;
        let (requests, asked) = sync_channel::<Asked>(1);
        std::thread::Builder::new().name("nsm".to_owned()).spawn(move || {
            for (request, answer) in asked {
                // Nobody waits for an answer that comes too late.
                answer.try_send(nsm_process_request(device.as_raw_fd(), request)).ok();
            }
        })?;
        Ok(Self(requests))
    }

    /// The registers that say what the machine is, by name, in lower-case hexadecimal.
    pub fn identity(&self) -> Result<BTreeMap<String, String>, NsmError> {
        let mut identity = BTreeMap::new();
        for index in IDENTITY_PCRS {
            let data = self.register(index)?;
            if IMAGE_PCRS.contains(&index) || data.iter().any(|byte| *byte != 0) {
                identity.insert(pcr_name(index), hex(&data));
            }
        }
        Ok(identity)
    }

    /// A register's value.
    pub fn register(&self, index: u16) -> Result<Vec<u8>, NsmError> {
        let what = format!("read PCR {index}");
        match self.ask(Request::DescribePCR { index })? {
            Response::DescribePCR { data, .. } => Ok(data),
            other => Err(failed(what, other)),
        }
    }

    /// Extends a digest into [`MANIFEST_PCR`] and locks the register for the rest of the machine's life. It
    /// answers the register's value, in hexadecimal.
    pub fn measure(&self, digest: &[u8]) -> Result<String, NsmError> {
        let extend = Request::ExtendPCR { index: MANIFEST_PCR, data: digest.to_vec() };
        let value = match self.ask(extend)? {
            Response::ExtendPCR { data } => data,
            other => return Err(failed(format!("extend PCR {MANIFEST_PCR}"), other)),
        };
        match self.ask(Request::LockPCR { index: MANIFEST_PCR })? {
            Response::LockPCR => Ok(hex(&value)),
            other => Err(failed(format!("lock PCR {MANIFEST_PCR}"), other)),
        }
    }

    /// Some random bytes: at most 256.
    pub fn random(&self) -> Result<Vec<u8>, NsmError> {
        match self.ask(Request::GetRandom)? {
            Response::GetRandom { random } => Ok(random),
            other => Err(failed("give random bytes".to_owned(), other)),
        }
    }

    fn ask(&self, request: Request) -> Result<Response, NsmError> {
        let (answer, answered) = sync_channel(1);
        // Full: the request before has not been answered in its time.
        self.0.try_send((request, answer)).map_err(|_| NsmError::Silent)?;
        answered.recv_timeout(ANSWER_MAX).map_err(|_| NsmError::Silent)
    }
}

/// How a register is called in status and by AWS's tools.
pub fn pcr_name(index: u16) -> String {
    format!("PCR{index}")
}

#[expect(clippy::wildcard_enum_match_arm, reason = "as above")]
fn failed(what: String, answer: Response) -> NsmError {
    match answer {
        Response::Error(code) => NsmError::Refused { what, code },
        _ => NsmError::Confused(what),
    }
}
