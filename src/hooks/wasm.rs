//! The `wasm` plugin: a module that sees events and nothing else. No files, no network, no clock.
//!
//! The interface is this small. The module exports
//! * `memory`;
//! * `alloc(size: i32) -> i32`: where the host may put that many bytes; called before each event, and the module may
//!   give the same place each time;
//! * `event(ptr: i32, size: i32)`: one event, as the line of JSON that is described in [`super::event`].
//!
//! It may import from `warmfs`
//! * `action(ptr: i32, size: i32)`: a line as described in [`super::action`];
//! * `log(ptr: i32, size: i32)`: a text for the log.
//!
//! Limits: linear memory (`memory`), and the instructions of one event (`fuel`, counted by the interpreter, so that the
//! limit does not depend on how busy the machine is). A module that traps, runs out of fuel, or breaks the interface is
//! disabled. The interpreter is wasmi: written in Rust, no JIT compiler and no writable code pages in a daemon
//! that guards files, and a fraction of wasmtime's build time; a policy of some hundred instructions for each event does
//! not need more speed.

use super::event::Delivery;
use super::plugin::{Disable, Host, Plugin};
use wasmi::{
    Caller, Engine, Extern, Linker, Memory, Module, Store, StoreLimits, StoreLimitsBuilder,
    TypedFunc,
};

/// Lines that a module may give back for one event.
const LINES_MAX: usize = 1000;

struct State {
    limits: StoreLimits,
    lines: Vec<Line>,
}

enum Line {
    Action(Vec<u8>),
    Log(Vec<u8>),
}

/// A module that runs.
pub(super) struct Wasm {
    store: Store<State>,
    memory: Memory,
    alloc: TypedFunc<i32, i32>,
    event: TypedFunc<(i32, i32), ()>,
    fuel: u64,
    line: Vec<u8>,
}

impl Wasm {
    /// Start a module: binary, or in the text format.
    pub(super) fn new(module: &[u8], memory_max: usize, fuel: u64) -> Result<Wasm, String> {
        let text = |error: wasmi::Error| error.to_string();
        let mut config = wasmi::Config::default();
        config.consume_fuel(true);
        let engine = Engine::new(&config);
        let module = Module::new(&engine, module).map_err(text)?;
        let limits = StoreLimitsBuilder::new()
            .memory_size(memory_max)
            .memories(1)
            .instances(1)
            .trap_on_grow_failure(false)
            .build();
        let mut store = Store::new(
            &engine,
            State {
                limits,
                lines: Vec::new(),
            },
        );
        store.limiter(|state| &mut state.limits);
        store.set_fuel(fuel).map_err(text)?;
        let mut linker = <Linker<State>>::new(&engine);
        linker
            .func_wrap(
                "warmfs",
                "action",
                |caller: Caller<'_, State>, ptr: i32, size: i32| {
                    take(caller, ptr, size, Line::Action)
                },
            )
            .and_then(|linker| {
                linker.func_wrap(
                    "warmfs",
                    "log",
                    |caller: Caller<'_, State>, ptr: i32, size: i32| {
                        take(caller, ptr, size, Line::Log)
                    },
                )
            })
            .map_err(|error| error.to_string())?;
        let instance = linker
            .instantiate_and_start(&mut store, &module)
            .map_err(text)?;
        let memory = instance
            .get_memory(&store, "memory")
            .ok_or("it exports no memory")?;
        let missing =
            |name: &str, error: wasmi::Error| format!("it exports no usable {name}: {error}");
        let alloc = instance
            .get_typed_func(&store, "alloc")
            .map_err(|error| missing("alloc(i32) -> i32", error))?;
        let event = instance
            .get_typed_func(&store, "event")
            .map_err(|error| missing("event(i32, i32)", error))?;
        Ok(Wasm {
            store,
            memory,
            alloc,
            event,
            fuel,
            line: Vec::new(),
        })
    }

    fn call(&mut self, delivery: &Delivery) -> Result<(), String> {
        self.line.clear();
        delivery.write_json(&mut self.line);
        // A gap is a line, and an event, of its own.
        for line in self
            .line
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            self.store
                .set_fuel(self.fuel)
                .map_err(|error| error.to_string())?;
            let size = i32::try_from(line.len()).map_err(|_| "an event of 2 GiB".to_owned())?;
            let place = self
                .alloc
                .call(&mut self.store, size)
                .map_err(|error| explain(&error))?;
            self.memory
                .write(&mut self.store, place as u32 as usize, line)
                .map_err(|_| {
                    format!("alloc({size}) gave {place}, which is outside of its memory")
                })?;
            self.event
                .call(&mut self.store, (place, size))
                .map_err(|error| explain(&error))?;
        }
        Ok(())
    }
}

/// Copy what the module points at.
fn take(
    mut caller: Caller<'_, State>,
    ptr: i32,
    size: i32,
    line: fn(Vec<u8>) -> Line,
) -> Result<(), wasmi::Error> {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        return Err(wasmi::Error::new("it exports no memory"));
    };
    let (data, state) = memory.data_and_store_mut(&mut caller);
    let start = ptr as u32 as usize;
    let bytes = data
        .get(start..start.saturating_add(size as u32 as usize))
        .ok_or_else(|| wasmi::Error::new("a line outside of its memory"))?;
    if state.lines.len() >= LINES_MAX {
        return Err(wasmi::Error::new(format!(
            "more than {LINES_MAX} lines for one event"
        )));
    }
    state.lines.push(line(bytes.to_vec()));
    Ok(())
}

fn explain(error: &wasmi::Error) -> String {
    if error.as_trap_code() == Some(wasmi::TrapCode::OutOfFuel) {
        "it ran out of fuel, the limit of instructions for one event".into()
    } else {
        error.to_string()
    }
}

impl Plugin for Wasm {
    fn events(&mut self, batch: &[Delivery], host: &Host) -> Result<(), Disable> {
        for delivery in batch {
            let result = self.call(delivery);
            for line in std::mem::take(&mut self.store.data_mut().lines) {
                match line {
                    Line::Action(line) => drop(host.line(&line)),
                    Line::Log(text) => {
                        tracing::warn!(
                            "plugin {}: {}",
                            host.name(),
                            String::from_utf8_lossy(&text)
                        );
                    }
                }
            }
            result.map_err(Disable)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::{Event, Kind};
    use super::super::tests::{acted, host};
    use super::*;
    use std::path::Path;

    /// A module with this text as its `event`.
    fn module(event: &str) -> Result<Wasm, String> {
        let text = format!(
            r#"(module
                (import "warmfs" "action" (func $action (param i32 i32)))
                (import "warmfs" "log" (func $log (param i32 i32)))
                (memory (export "memory") 1)
                (data (i32.const 0) "evict a")
                (func (export "alloc") (param i32) (result i32) (i32.const 1024))
                (func (export "event") (param i32 i32) {event}))"#
        );
        Wasm::new(text.as_bytes(), 1 << 20, 100_000)
    }

    fn event(plugin: &mut Wasm, host: &Host) -> Result<(), Disable> {
        let event = Event::new(Kind::Open, Path::new("f"));
        plugin.events(
            &[Delivery {
                seq: 1,
                lost: 0,
                event,
            }],
            host,
        )
    }

    #[test]
    fn it_can_ask_for_actions() {
        let (host, actions) = acted();
        let mut plugin = module("(call $action (i32.const 0) (i32.const 7))").expect("valid");
        event(&mut plugin, &host).expect("goes on");
        assert_eq!(*actions.lock(), ["evict a"]);
    }

    #[test]
    fn it_gets_the_line_of_the_event() {
        let mut plugin = module("(call $log (local.get 0) (local.get 1))").expect("valid");
        let event = Event::new(Kind::Open, Path::new("f"));
        plugin
            .call(&Delivery {
                seq: 5,
                lost: 0,
                event,
            })
            .expect("runs");
        match &plugin.store.data().lines[..] {
            [Line::Log(line)] => assert!(line.starts_with(br#"{"v":1,"seq":5,"event":"on_open""#)),
            _ => panic!("one line"),
        }
    }

    #[test]
    fn a_trap_an_endless_loop_and_a_wild_pointer_disable_it() {
        for (text, reason) in [
            ("unreachable", "unreachable"),
            ("(loop (br 0))", "fuel"),
            ("(call $action (i32.const -1) (i32.const 7))", "outside"),
            (
                "(loop (call $action (i32.const 0) (i32.const 7)) (br 0))",
                "lines for one event",
            ),
        ] {
            let Disable(told) = event(&mut module(text).expect("valid"), &host()).expect_err(text);
            assert!(told.contains(reason), "{text}: {told}");
        }
    }

    #[test]
    fn memory_is_limited() {
        // Growing gives -1, as the standard has it; a module that goes on all the same traps by itself.
        let grow = "(if (i32.ne (memory.grow (i32.const 100)) (i32.const -1)) (then unreachable))";
        event(&mut module(grow).expect("valid"), &host()).expect("goes on");
        let large = r#"(module (memory (export "memory") 1000))"#;
        assert!(Wasm::new(large.as_bytes(), 1 << 20, 1000).is_err());
    }

    #[test]
    fn a_module_without_the_interface_is_refused() {
        let error = Wasm::new(b"(module)", 1 << 20, 1000)
            .err()
            .expect("refused");
        assert!(error.contains("memory"), "{error}");
        assert!(Wasm::new(b"not a module", 1 << 20, 1000).is_err());
    }
}
