package relzma
import ("testing";"os";"bytes";"time";"fmt")
func TestZExp(t *testing.T){
 old,_:=os.ReadFile(os.Getenv("ZOLD")); new,_:=os.ReadFile(os.Getenv("ZNEW"))
 var ob bytes.Buffer
 t0:=time.Now()
 if err:=ExpandZstd(&ob,bytes.NewReader(old),1<<30);err!=nil{t.Fatal(err)}
 fmt.Println("expanded",ob.Len(),time.Since(t0))
 if w:=os.Getenv("ZOUT");w!=""{os.WriteFile(w,ob.Bytes(),0600)}
 for _,moves:=range [][]Move{nil}{
 h,err:=LearnZstd(nil,bytes.NewReader(old),int64(ob.Len()),moves)
 if err!=nil{t.Fatal(err)}
 for _,hh:=range []*History{h}{
 t0=time.Now()
 d,err:=DescribeZstd(new,1<<30,hh)
 if err!=nil{t.Fatal(err)}
 m,_:=MemoryZstd(d.Recipe,int64(ob.Len()))
 fmt.Println("used",d.Used,"plain",len(d.Plain),"recipe",len(d.Recipe),time.Since(t0),"memory",m>>20)
 p,_:=parseZstd(d.Recipe); n:=0; for _,b:=range p.blocks{n+=len(b.tables)}
 fmt.Println("blocks",len(p.blocks),"tables",n,"window",p.frame.window)
 var out bytes.Buffer
 t0=time.Now()
 err=new_(&out,d,hh)
 fmt.Println("rebuild",err,bytes.Equal(out.Bytes(),new[:d.Used]),time.Since(t0))
 }}
}
func new_(out *bytes.Buffer,d *Described,h *History) error { return new(Workspace).RebuildZstd(out,bytes.NewReader(d.Plain),int64(len(d.Plain)),d.Recipe,h) }
