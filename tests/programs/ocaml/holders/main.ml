(* Holds on to versions of Part in the ways that it is told. *)

let captured = ref []
let traces = ref []
let weak = Weak.create 1

let trace () =
  match Part.f (-1) with
  | _ -> ()
  | exception Not_found -> traces := [ Printexc.get_raw_backtrace () ]

let within () =
  let length () =
    print_endline "within";
    String.length (read_line ())
  in
  "left " ^ string_of_int (Part.hold length)

let rec spin n =
  ignore (List.init 100 string_of_int);
  if n mod 10 = 0 then Gc.full_major () else Gc.compact ();
  if Part.f n < n then failwith "wrong";
  match Unix.select [ Unix.stdin ] [] [] 0. with
  | [], _, _ -> spin (n + 1)
  | _ -> ignore (read_line ())

let does = function
  | "capture" -> captured := [ Part.f ]
  | "fill" -> captured := List.init 50_000 (fun n m -> n + m)
  | "trace" -> trace ()
  | "weak" -> Weak.set weak 0 (Some Part.name)
  | "raise" -> ( try ignore (Part.f (-1)) with Not_found -> ())
  | "spin" ->
      print_endline "spinning";
      spin 1
  | "release" ->
      captured := [];
      traces := [];
      Weak.set weak 0 None
  | other -> failwith other

let answer = function
  | "f" -> string_of_int (Part.f 0)
  | "lines" -> String.concat "|" (String.split_on_char '\n' (Printexc.get_backtrace ()))
  | "within" -> within ()
  | other ->
      does other;
      "done"

let () =
  Printexc.record_backtrace true;
  print_endline "ready";
  try
    while true do
      print_endline (answer (read_line ()))
    done
  with End_of_file -> ()
