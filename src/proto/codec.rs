//! How messages are decoded: as prost does it, but not before it is known how many entries they have.
//!
//! An entry that says nothing takes two bytes of a message and a hundred of memory: what is bounded in bytes only may become fifty
//! times as large when it is decoded.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use thiserror::Error;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use super::MAX_SESSIONS_PER_MESSAGE;

/// Fields of what a message is about: its sessions, and what else is said once.
const MOST_FIELDS: usize = MAX_SESSIONS_PER_MESSAGE + 8;

/// Why a message is not decoded.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
enum Refused {
    #[error("a message names more than {MAX_SESSIONS_PER_MESSAGE} sessions")]
    TooMany,
    #[error("a message cannot be decoded")]
    Undecodable,
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooMany => Self::invalid_argument(refused.to_string()),
            // As prost says it.
            Refused::Undecodable => Self::internal(refused.to_string()),
        }
    }
}

/// Walks over a message without keeping anything of it. Each of ours is a choice of one, whose own fields are counted.
fn outline(mut message: &[u8]) -> Result<(), Refused> {
    let mut fields = 0;
    while !message.is_empty() {
        let (tag, wire_type) = decode_key(&mut message).map_err(|_| Refused::Undecodable)?;
        if wire_type != WireType::LengthDelimited {
            skip(wire_type, tag, &mut message)?;
            continue;
        }
        let length = decode_varint(&mut message).map_err(|_| Refused::Undecodable)?;
        let length = usize::try_from(length).ok().filter(|length| *length <= message.len());
        let (mut choice, rest) = message.split_at(length.ok_or(Refused::Undecodable)?);
        message = rest;
        while !choice.is_empty() {
            fields += 1;
            if fields > MOST_FIELDS {
                return Err(Refused::TooMany);
            }
            // What is no message may be a field of a later version. If it is none, prost refuses it.
            let Ok((tag, wire_type)) = decode_key(&mut choice) else { break };
            if skip(wire_type, tag, &mut choice).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn skip(wire_type: WireType, tag: u32, from: &mut &[u8]) -> Result<(), Refused> {
    skip_field(wire_type, tag, from, DecodeContext::default()).map_err(|_| Refused::Undecodable)
}

/// The codec of all messages.
#[derive(Clone, Copy, Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// Decodes what has not too many entries.
#[derive(Clone, Debug)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message is in one piece. If it ever were not, it must not pass unseen.
        if from.chunk().len() != from.remaining() {
            return Err(Refused::Undecodable.into());
        }
        outline(from.chunk())?;
        self.0.decode(from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::v1;

    fn of(message: v1::agent_message::Message) -> Vec<u8> {
        v1::AgentMessage { message: Some(message) }.encode_to_vec()
    }

    fn reports(held: usize, released: usize) -> v1::Reports {
        let held = vec![v1::Holding::default(); held];
        v1::Reports { held, released: vec![String::new(); released], through: 7, complete: true }
    }

    #[test]
    fn as_many_entries_as_may_be_are_decoded_and_more_are_not() {
        let most = of(v1::agent_message::Message::Reports(reports(MAX_SESSIONS_PER_MESSAGE - 1, 1)));
        assert_eq!(outline(&most), Ok(()));
        let many = of(v1::agent_message::Message::Reports(reports(MOST_FIELDS, 1)));
        assert_eq!(outline(&many), Err(Refused::TooMany));
        // The same choice twice is one message, and its entries are those of both.
        let half = of(v1::agent_message::Message::Reports(reports(MAX_SESSIONS_PER_MESSAGE / 2 + 4, 0)));
        assert_eq!(outline(&half), Ok(()));
        assert_eq!(outline(&[half.clone(), half].concat()), Err(Refused::TooMany));
    }

    #[test]
    fn entries_are_counted_behind_what_is_not_known() {
        let many = of(v1::agent_message::Message::Reports(reports(MOST_FIELDS, 1)));
        // Field 99: a number, a group with a number in it, eight bytes, four bytes.
        for unknown in
            [&[0x98, 6, 1][..], &[0x9b, 6, 8, 1, 0x9c, 6], &[0x99, 6, 0, 0, 0, 0, 0, 0, 0, 0], &[0x9d, 6, 0, 0, 0, 0]]
        {
            assert_eq!(outline(&[unknown, &many].concat()), Err(Refused::TooMany), "{unknown:?}");
        }
    }

    proptest! {
        /// Whatever prost decodes is outlined, too, what is not known as well.
        #[test]
        fn what_can_be_decoded_can_be_outlined(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if v1::AgentMessage::decode(&bytes[..]).is_ok() {
                prop_assert_eq!(outline(&bytes), Ok(()));
            }
        }
    }
}
