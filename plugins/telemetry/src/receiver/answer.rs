//! Answers in the form of the request: OTLP wants a whole response, and errors as `google.rpc.Status`.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode, header, header::HeaderValue};

use crate::intake::{Form, IntakeError};

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// When a client refused for lack of room should come again.
const RETRY_AFTER_SECONDS: &str = "5";

/// Why a request is not taken.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    why: String,
    may_retry: bool,
}

impl Refusal {
    /// One that the same request meets again.
    pub(super) fn last(status: StatusCode, why: &str) -> Self {
        Self { status, why: why.to_owned(), may_retry: false }
    }

    /// One that ends by itself.
    pub(super) fn passing(status: StatusCode, why: &str) -> Self {
        Self { may_retry: true, ..Self::last(status, why) }
    }

    /// The answer in the client's form.
    pub(super) fn answer(&self, form: Form) -> Answer {
        let mut answer = match form {
            Form::Json => {
                let body = serde_json::json!({ "code": self.code(), "message": self.why });
                answer(self.status, JSON, body.to_string().into())
            }
            Form::Protobuf => {
                let mut body = Vec::new();
                prost::encoding::int32::encode(1, &self.code(), &mut body);
                prost::encoding::string::encode(2, &self.why, &mut body);
                answer(self.status, PROTOBUF, body.into())
            }
        };
        self.retry(&mut answer);
        answer
    }

    /// The answer to a client whose form is not known.
    pub(super) fn plain(&self) -> Answer {
        let mut answer = text(self.status, format!("{}\n", self.why));
        self.retry(&mut answer);
        answer
    }

    fn retry(&self, answer: &mut Answer) {
        if self.may_retry {
            let after = HeaderValue::from_static(RETRY_AFTER_SECONDS);
            answer.headers_mut().insert(header::RETRY_AFTER, after);
        }
    }

    /// The code of `google.rpc.Code` that stands for the HTTP status.
    fn code(&self) -> i32 {
        match self.status {
            StatusCode::REQUEST_TIMEOUT => 4,
            StatusCode::TOO_MANY_REQUESTS => 8,
            StatusCode::SERVICE_UNAVAILABLE => 14,
            // INVALID_ARGUMENT
            _ => 3,
        }
    }
}

impl From<IntakeError> for Refusal {
    fn from(error: IntakeError) -> Self {
        let status = match error {
            IntakeError::TooLarge | IntakeError::TooMany | IntakeError::Attributes => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            IntakeError::Gzip(_)
            | IntakeError::Malformed
            | IntakeError::Json(_)
            | IntakeError::Identifier
            | IntakeError::Duplicate => StatusCode::BAD_REQUEST,
        };
        Self::last(status, &error.to_string())
    }
}

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/x-protobuf";

/// Everything was taken: a response message with no field set.
pub(super) fn taken(form: Form) -> Answer {
    match form {
        Form::Json => answer(StatusCode::OK, JSON, Bytes::from_static(b"{}")),
        Form::Protobuf => answer(StatusCode::OK, PROTOBUF, Bytes::new()),
    }
}

/// JSON that is not OTLP's.
pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Answer {
    answer(status, JSON, format!("{body}\n").into())
}

/// An answer for people.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body.into())
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
