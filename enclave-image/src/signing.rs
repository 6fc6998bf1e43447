//! The certificate and key that an image is signed with, tried out before anything is built.

use std::{fs, path::Path};

use aws_nitro_enclaves_image_format::utils::{EifSigner, SignKeyData, eif_signer::SignKey};
use openssl::{nid::Nid, pkey::PKey, x509::X509};

use crate::failure::{Failure, Outcome};

/// A certificate with its key. The key is not shown.
pub struct Signing {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signing(..)")
    }
}

impl Signing {
    /// Reads both, in PEM, and checks that they belong together. Nitro takes ECDSA on P-384 alone.
    pub fn read(certificate_file: &Path, key_file: &Path) -> Outcome<Self> {
        let certificate = fs::read(certificate_file).map_err(|e| Failure::input(certificate_file, e))?;
        let key = fs::read(key_file).map_err(|error| Failure::input(key_file, error))?;
        let parsed = X509::from_pem(&certificate);
        let parsed = parsed.map_err(|_| Failure::input(certificate_file, "no certificate in PEM"))?;
        let private = PKey::private_key_from_pem(&key);
        let private = private.map_err(|_| Failure::input(key_file, "no private key in PEM"))?;
        let curve = private.ec_key().ok().and_then(|key| key.group().curve_name());
        if curve != Some(Nid::SECP384R1) {
            return Err(Failure::input(key_file, "no key on the curve P-384, which Nitro requires"));
        }
        let public = parsed.public_key().map_err(|e| Failure::input(certificate_file, e))?;
        if !public.public_eq(&private) {
            return Err(Failure::input(
                certificate_file,
                format!("not the certificate of {}", key_file.display()),
            ));
        }
        let signing = Self { certificate, key };
        let signer = EifSigner::new(Some(signing.key_data()));
        let tried = signer.map(|signer| signer.sign(b"tried out"));
        if let Some(Err(cause)) = tried {
            return Err(Failure::input(key_file, cause));
        }
        Ok(signing)
    }

    fn key_data(&self) -> SignKeyData {
        SignKeyData { cert: self.certificate.clone(), key: SignKey::LocalPrivateKey(self.key.clone()) }
    }

    /// As AWS's crate takes it.
    pub fn into_key_data(self) -> SignKeyData {
        self.key_data()
    }
}
