(* JSON, as far as answers need it. *)

type t =
  | Null
  | Bool of bool
  | Int of int
  | String of string
  | List of t list
  | Object of (string * t) list

let quoted buffer text =
  Buffer.add_char buffer '"';
  String.iter
    (function
      | '"' -> Buffer.add_string buffer "\\\""
      | '\\' -> Buffer.add_string buffer "\\\\"
      | '\n' -> Buffer.add_string buffer "\\n"
      | c when c < ' ' -> Printf.bprintf buffer "\\u%04x" (Char.code c)
      | c -> Buffer.add_char buffer c)
    text;
  Buffer.add_char buffer '"'

let rec write buffer = function
  | Null -> Buffer.add_string buffer "null"
  | Bool value -> Buffer.add_string buffer (string_of_bool value)
  | Int value -> Buffer.add_string buffer (string_of_int value)
  | String text -> quoted buffer text
  | List items -> between buffer '[' ']' (write buffer) items
  | Object fields ->
      between buffer '{' '}'
        (fun (key, value) ->
          quoted buffer key;
          Buffer.add_char buffer ':';
          write buffer value)
        fields

and between : 'a. Buffer.t -> char -> char -> ('a -> unit) -> 'a list -> unit =
 fun buffer first last one items ->
  Buffer.add_char buffer first;
  List.iteri
    (fun place item ->
      if place > 0 then Buffer.add_char buffer ',';
      one item)
    items;
  Buffer.add_char buffer last

let to_string value =
  let buffer = Buffer.create 4096 in
  write buffer value;
  Buffer.contents buffer

let strings items = List (List.map (fun text -> String text) items)
let optional one = function None -> Null | Some value -> one value
