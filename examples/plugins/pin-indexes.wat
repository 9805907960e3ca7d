;; Pins each file that it hears of: "pin PATH" keeps what is read of it out of eviction.
;;
;; A plugin of warmfs, type "wasm"; see pin-indexes.toml. This is a WebAssembly module in its text format, which warmfs
;; reads as it is. To make the binary form: wat2wasm pin-indexes.wat (package wabt).
(module
  (import "warmfs" "action" (func $action (param $at i32) (param $size i32)))

  ;; Page 0: constants, and the line of the action behind them. Page 1: the event.
  (memory (export "memory") 2)
  (data (i32.const 0) "\"path\":\"")
  (data (i32.const 16) "pin ")

  ;; Where the event may be put. Events of this plugin carry no data, so a page is enough for the longest path.
  (func (export "alloc") (param $size i32) (result i32)
    (if (i32.gt_u (local.get $size) (i32.const 65536)) (then unreachable))
    (i32.const 65536))

  (func (export "event") (param $at i32) (param $size i32)
    (local $end i32)
    (local $to i32)
    (local $byte i32)
    (local.set $end (i32.add (local.get $at) (local.get $size)))

    ;; Find "path":" in the line: eight bytes, one comparison.
    (block $found
      (loop $search
        (br_if $found (i64.eq (i64.load align=1 (local.get $at)) (i64.load (i32.const 0))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $search (i32.lt_u (i32.add (local.get $at) (i32.const 8)) (local.get $end))))
      ;; There is none: a gap.
      (return))

    ;; Copy the path behind "pin ".
    (local.set $at (i32.add (local.get $at) (i32.const 8)))
    (local.set $to (i32.const 20))
    (block $copied
      (loop $copy
        (local.set $byte (i32.load8_u (local.get $at)))
        (br_if $copied (i32.eq (local.get $byte) (i32.const 34))) ;; "
        ;; An escaped character: a name too odd to be an index.
        (if (i32.eq (local.get $byte) (i32.const 92)) (then (return))) ;; \
        (i32.store8 (local.get $to) (local.get $byte))
        (local.set $to (i32.add (local.get $to) (i32.const 1)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $copy (i32.lt_u (local.get $at) (local.get $end))))
      (return))

    (call $action (i32.const 16) (i32.sub (local.get $to) (i32.const 16)))))
