//! A Modbus TCP device to try the mapper on: a thermostat.
//!
//! Input register 0 is the temperature in tenths of a degree, which moves towards the set point,
//! holding register 0, by a tenth with each reading. Holding registers 0–15 and coils 0–15 can be
//! written.

use std::future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use clap::Parser;
use mapper_kit::say;
use tokio::net::TcpListener;
use tokio_modbus::server::Service;
use tokio_modbus::server::tcp::{Server, accept_tcp_connection};
use tokio_modbus::{ExceptionCode, Request, Response};

const WORDS: usize = 16;

/// A simulated thermostat on Modbus TCP.
#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "127.0.0.1:5020")]
    listen: SocketAddr,
    /// Temperature at the start, in tenths of a degree.
    #[arg(long, default_value_t = 200)]
    start: u16,
}

#[derive(Default)]
struct Registers {
    temperature: u16,
    holding: [u16; WORDS],
    coils: [bool; WORDS],
}

#[derive(Clone, Default)]
struct Thermostat(Arc<Mutex<Registers>>);

impl Thermostat {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a thermostat has no other functions"
    )]
    fn answer(&self, request: &Request<'_>) -> Result<Response, ExceptionCode> {
        let mut it = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match request {
            Request::ReadInputRegisters(0, 1) => {
                let (now, wanted) = (it.temperature, it.holding[0]);
                it.temperature = match now.cmp(&wanted) {
                    std::cmp::Ordering::Less => now + 1,
                    std::cmp::Ordering::Equal => now,
                    std::cmp::Ordering::Greater => now - 1,
                };
                Ok(Response::ReadInputRegisters(vec![now]))
            }
            Request::ReadHoldingRegisters(at, count) => {
                part(&it.holding, *at, *count).map(Response::ReadHoldingRegisters)
            }
            Request::ReadCoils(at, count) => part(&it.coils, *at, *count).map(Response::ReadCoils),
            Request::WriteSingleRegister(at, word) => {
                let place = it.holding.get_mut(usize::from(*at));
                *place.ok_or(ExceptionCode::IllegalDataAddress)? = *word;
                say(&format!("holding register {at} is {word}"));
                Ok(Response::WriteSingleRegister(*at, *word))
            }
            Request::WriteSingleCoil(at, on) => {
                let place = it.coils.get_mut(usize::from(*at));
                *place.ok_or(ExceptionCode::IllegalDataAddress)? = *on;
                Ok(Response::WriteSingleCoil(*at, *on))
            }
            _ => Err(ExceptionCode::IllegalFunction),
        }
    }
}

fn part<T: Copy>(all: &[T], at: u16, count: u16) -> Result<Vec<T>, ExceptionCode> {
    let (at, count) = (usize::from(at), usize::from(count));
    let part = all.get(at..at + count);
    part.map(<[T]>::to_vec)
        .ok_or(ExceptionCode::IllegalDataAddress)
}

impl Service for Thermostat {
    type Request = Request<'static>;
    type Response = Response;
    type Exception = ExceptionCode;
    type Future = future::Ready<Result<Response, ExceptionCode>>;

    fn call(&self, request: Self::Request) -> Self::Future {
        future::ready(self.answer(&request))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(args.listen).await?;
    say(&format!("a thermostat on {}", listener.local_addr()?));
    let it = Thermostat::default();
    {
        let mut registers = it.0.lock().unwrap_or_else(PoisonError::into_inner);
        registers.temperature = args.start;
        registers.holding[0] = args.start;
    }
    let server = Server::new(listener);
    let connected = |stream, peer| {
        let it = it.clone();
        async move { accept_tcp_connection(stream, peer, |_| Ok(Some(it.clone()))) }
    };
    server
        .serve(&connected, |error| say(&format!("connection: {error}")))
        .await?;
    Ok(())
}
